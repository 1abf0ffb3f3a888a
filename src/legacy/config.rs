//! The configuration file of the service, `/opt/bingo/config.yaml`. It is read here and not by the `config` room, since
//! its format belongs to the service and not to forefront.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

/// Where the real service reads it, and nowhere else.
pub const DEFAULT_PATH: &str = "/opt/bingo/config.yaml";

/// Where the real service logs, below which each e-mail has its directory.
pub const DEFAULT_LOG_DIR: &str = "/opt/bongo/logs";

/// Longer files are refused.
const BYTES_MAX: u64 = 64 << 10;

/// Fields that are not given have their defaults; unknown ones are ignored (invented: not reported either way).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    pub student_email: String,
    pub postgres_cluster: PostgresCluster,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PostgresCluster {
    pub hosts: Vec<Host>,
    pub user: String,
    pub password: String,
    pub db_name: String,
    pub ssl_mode: String,
    pub use_closest_node: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    pub address: String,
    pub port: u16,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("open {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{0} is longer than 64 KiB")]
    TooLong(PathBuf),
    #[error("parse {path}")]
    Parse { path: PathBuf, source: serde_yaml_ng::Error },
}

impl Default for Config {
    fn default() -> Config {
        Config { student_email: "test@example.com".to_owned(), postgres_cluster: PostgresCluster::default() }
    }
}

impl Default for PostgresCluster {
    fn default() -> PostgresCluster {
        PostgresCluster {
            hosts: vec![Host::default()],
            user: "postgres".to_owned(),
            password: "postgres".to_owned(),
            db_name: "postgres".to_owned(),
            ssl_mode: "disable".to_owned(),
            use_closest_node: false,
        }
    }
}

impl Default for Host {
    fn default() -> Host {
        Host { address: "localhost".to_owned(), port: 5432 }
    }
}

impl Config {
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        use std::io::Read;
        let failed = |source| ConfigError::Read { path: path.to_owned(), source };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > BYTES_MAX {
            return Err(ConfigError::TooLong(path.to_owned()));
        }
        Config::parse(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source })
    }

    pub fn parse(text: &str) -> Result<Config, serde_yaml_ng::Error> {
        // An empty document is the null value, which the derived code would refuse.
        if text.trim().is_empty() {
            return Ok(Config::default());
        }
        serde_yaml_ng::from_str(text)
    }

    /// As `print_current_config` prints it.
    pub fn to_yaml(&self) -> Result<String, serde_yaml_ng::Error> {
        serde_yaml_ng::to_string(self)
    }

    /// `<log_dir>/<first 10 hex digits of sha1(email)>/main.log`.
    pub fn log_path(&self, log_dir: &Path) -> PathBuf {
        let digest = hex::encode(Sha1::digest(self.student_email.as_bytes()));
        log_dir.join(&digest[..10]).join("main.log")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_has_its_default() {
        let config =
            Config::parse("student_email: a@b.c\npostgres_cluster:\n  hosts:\n    - address: db1\n").unwrap();
        assert_eq!(config.student_email, "a@b.c");
        assert_eq!(config.postgres_cluster.hosts, [Host { address: "db1".to_owned(), port: 5432 }]);
        assert_eq!(config.postgres_cluster.user, "postgres");
        assert_eq!(Config::parse("\n").unwrap(), Config::default());
        assert!(Config::parse("student_email: [").is_err());
        assert!(Config::parse("postgres_cluster: {hosts: [{port: 99999}]}").is_err());
    }

    #[test]
    fn the_printed_defaults_are_read_back() {
        let config = Config::default();
        assert_eq!(Config::parse(&config.to_yaml().unwrap()).unwrap(), config);
    }

    #[test]
    fn the_shipped_example_is_read() {
        let config = Config::parse(include_str!("../../config/legacy.yaml")).unwrap();
        assert_eq!(config, Config::default());
    }

    #[test]
    fn the_log_lies_under_the_hash_of_the_email() {
        // printf test@example.com | sha1sum
        let path = Config::default().log_path(Path::new("/logs"));
        assert_eq!(path, Path::new("/logs/567159d622/main.log"));
    }

    #[test]
    fn a_missing_file_is_an_error() {
        let error = Config::read(Path::new("/nonexistent/config.yaml")).unwrap_err();
        assert!(matches!(error, ConfigError::Read { .. }));
    }
}
