//! TLS as clients and operators see it.

use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind, ProtocolVersion, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::listener::settings::{CertificateFiles, QuicReset};

/// A fresh self-signed pair for these names, replaced as operators' tools do: by renaming.
pub(super) fn write_pair(dir: &Path, stem: &str, names: &[&str]) -> CertificateFiles {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let pair = rcgen::generate_simple_self_signed(names).unwrap();
    let certificate = dir.join(format!("{stem}.crt"));
    let private_key = dir.join(format!("{stem}.key"));
    put(&private_key, &pair.signing_key.serialize_pem());
    put(&certificate, &pair.cert.pem());
    CertificateFiles { names: Vec::new(), certificate, private_key }
}

fn put(path: &Path, content: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, content).unwrap();
    std::fs::rename(&new, path).unwrap();
}

fn of_files(files: &[&CertificateFiles]) -> TlsConfig {
    let files = files.iter().map(|files| (*files).clone()).collect();
    let source = CertificateSource::Files(files);
    TlsConfig { source, shared_secret_file: None, quic_reset: QuicReset::Node }
}

/// A node with a registry of its own.
fn node(config: &TlsConfig, dir: &Path) -> (Arc<Tls>, Registry) {
    let registry = Registry::new();
    (Tls::new(config, dir, &registry).unwrap(), registry)
}

fn failure(config: &TlsConfig, dir: &Path) -> Error {
    Tls::new(config, dir, &Registry::new()).unwrap_err()
}

/// A client that trusts the certificate in this file, and remembers sessions.
fn client(trusted: &Path, version: &'static SupportedProtocolVersion, protocols: &[&str]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(trusted).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    config.resumption = Resumption::in_memory_sessions(8);
    config
}

/// What a client learns of a connection.
#[derive(Debug, PartialEq)]
struct Seen {
    kind: HandshakeKind,
    version: ProtocolVersion,
    protocol: Option<Vec<u8>>,
    certificate: CertificateDer<'static>,
}

/// A connection with a message in either direction, over memory.
async fn connect(server: &Tls, client: &Arc<ClientConfig>, name: &str) -> std::io::Result<Seen> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let acceptor = TlsAcceptor::from(server.tcp_config());
    let serve = async move {
        let mut stream = acceptor.accept(far).await?;
        let mut word = [0; 4];
        stream.read_exact(&mut word).await?;
        stream.write_all(&word).await?;
        stream.shutdown().await
    };
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connector = TlsConnector::from(Arc::clone(client));
    let ask = async move {
        let mut stream = connector.connect(name, near).await?;
        stream.write_all(b"ping").await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        assert_eq!(answer, b"ping");
        let (_, connection) = stream.get_ref();
        Ok(Seen {
            kind: connection.handshake_kind().unwrap(),
            version: connection.protocol_version().unwrap(),
            protocol: connection.alpn_protocol().map(<[u8]>::to_vec),
            certificate: connection.peer_certificates().unwrap()[0].clone(),
        })
    };
    let (served, seen) = tokio::join!(serve, ask);
    served.and(seen)
}

fn certificate_in(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

/// What is shown for a name now.
async fn shown(tls: &Tls, trusted: &Path, name: &str) -> CertificateDer<'static> {
    let client = Arc::new(client(trusted, &TLS13, &["h2"]));
    connect(tls, &client, name).await.unwrap().certificate
}

#[tokio::test]
async fn both_versions_and_both_protocols_are_spoken() {
    let dir = tempfile::tempdir().unwrap();
    let files = write_pair(dir.path(), "one", &["one.example"]);
    let (tls, _) = node(&of_files(&[&files]), dir.path());
    for (version, number) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
        for (offered, expected) in [
            (&["h2", "http/1.1"][..], Some("h2")),
            (&["http/1.1", "h2"], Some("h2")),
            (&["http/1.1"], Some("http/1.1")),
            (&[], None),
        ] {
            let client = Arc::new(client(&files.certificate, version, offered));
            let seen = connect(&tls, &client, "one.example").await.unwrap();
            assert_eq!(seen.version, number);
            assert_eq!(seen.protocol.as_deref(), expected.map(str::as_bytes));
            assert_ne!(seen.kind, HandshakeKind::Resumed);
        }
        let stranger = Arc::new(client(&files.certificate, version, &["h3"]));
        assert!(connect(&tls, &stranger, "one.example").await.is_err());
    }
}

#[test]
fn quic_is_h3_over_tls_1_3_without_early_data() {
    let dir = tempfile::tempdir().unwrap();
    let files = write_pair(dir.path(), "one", &["one.example"]);
    let (tls, _) = node(&of_files(&[&files]), dir.path());
    let config = tls.quic_config();
    assert_eq!(config.alpn_protocols, [b"h3"]);
    assert_eq!(config.max_early_data_size, 0);
    assert_eq!(tls.tcp_config().max_early_data_size, 0);
    assert!(quinn::crypto::rustls::QuicServerConfig::try_from(config).is_ok());
}

#[tokio::test]
async fn a_session_goes_on_at_the_other_node() {
    let dir = tempfile::tempdir().unwrap();
    let files = write_pair(dir.path(), "one", &["one.example"]);
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "0123456789abcdef0123456789abcdef\n").unwrap();
    let strange = of_files(&[&files]);
    let sharing = TlsConfig { shared_secret_file: Some(secret), ..strange.clone() };
    let (one, _) = node(&sharing, dir.path());
    let (other, _) = node(&sharing, dir.path());
    let (stranger, _) = node(&strange, dir.path());
    for version in [&TLS12, &TLS13] {
        let client = Arc::new(client(&files.certificate, version, &["h2"]));
        let kind = async |tls: &Tls| connect(tls, &client, "one.example").await.unwrap().kind;
        assert_ne!(kind(&one).await, HandshakeKind::Resumed);
        assert_eq!(kind(&other).await, HandshakeKind::Resumed);
        assert_eq!(kind(&one).await, HandshakeKind::Resumed);
        assert_ne!(kind(&stranger).await, HandshakeKind::Resumed);
    }
}

#[tokio::test]
async fn the_name_chooses_the_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let one = write_pair(dir.path(), "one", &["one.example"]);
    let two = write_pair(dir.path(), "two", &["*.two.example"]);
    let (tls, _) = node(&of_files(&[&one, &two]), dir.path());
    for (files, name) in [(&one, "one.example"), (&two, "www.two.example")] {
        let certificate = shown(&tls, &files.certificate, name).await;
        assert_eq!(certificate, certificate_in(&files.certificate));
    }
}

#[tokio::test]
async fn a_reload_takes_all_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let one = write_pair(dir.path(), "one", &["one.example"]);
    let two = write_pair(dir.path(), "two", &["one.example"]);
    let broken = CertificateFiles { private_key: one.private_key.clone(), ..two.clone() };
    let (tls, _) = node(&of_files(&[&one]), dir.path());
    let error = tls.reload(&of_files(&[&broken])).unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    assert_eq!(shown(&tls, &one.certificate, "one.example").await, certificate_in(&one.certificate));
    assert!(tls.refresh().is_none(), "what was refused is not looked at again");
    tls.reload(&of_files(&[&two])).unwrap();
    assert_eq!(shown(&tls, &two.certificate, "one.example").await, certificate_in(&two.certificate));
    write_pair(dir.path(), "one", &["one.example"]);
    assert!(tls.refresh().is_none(), "what is no longer used is not looked at");
}

#[test]
fn a_reload_reads_the_secret_and_keeps_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let files = write_pair(dir.path(), "one", &["one.example"]);
    let path = dir.path().join("secret");
    let config = TlsConfig { shared_secret_file: Some(path.clone()), ..of_files(&[&files]) };
    std::fs::write(&path, [b'a'; 40]).unwrap();
    let (tls, _) = node(&config, dir.path());
    let key = tls.secret().derive("purpose", b"");
    std::fs::write(&path, [b'b'; 40]).unwrap();
    tls.reload(&config).unwrap();
    assert_eq!(tls.secret().derive("purpose", b""), key);
    std::fs::write(&path, [b'b'; 4]).unwrap();
    assert!(matches!(tls.reload(&config), Err(Error::SecretShort { bytes: 4, .. })));
}

#[tokio::test]
async fn a_replaced_pair_is_noticed_and_a_half_replaced_one_waits() {
    let dir = tempfile::tempdir().unwrap();
    let files = write_pair(dir.path(), "one", &["one.example"]);
    let (tls, _) = node(&of_files(&[&files]), dir.path());
    assert!(tls.refresh().is_none());

    write_pair(dir.path(), "one", &["one.example"]);
    assert!(matches!(tls.refresh(), Some(Ok(()))));
    assert!(tls.refresh().is_none());
    let before = certificate_in(&files.certificate);
    assert_eq!(shown(&tls, &files.certificate, "one.example").await, before);

    let trusted = dir.path().join("trusted.crt");
    std::fs::copy(&files.certificate, &trusted).unwrap();
    let next = write_pair(dir.path(), "next", &["one.example"]);
    std::fs::rename(&next.certificate, &files.certificate).unwrap();
    assert!(matches!(tls.refresh(), Some(Err(Error::Mismatch { .. }))));
    assert!(tls.refresh().is_none(), "told once");
    assert_eq!(shown(&tls, &trusted, "one.example").await, before);

    std::fs::rename(&next.private_key, &files.private_key).unwrap();
    assert!(matches!(tls.refresh(), Some(Ok(()))));
    assert!(tls.refresh().is_none());
    assert_ne!(shown(&tls, &files.certificate, "one.example").await, before);
}

#[test]
fn files_that_are_gone_are_told_of_once_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let files = write_pair(dir.path(), "one", &["one.example"]);
    let (tls, _) = node(&of_files(&[&files]), dir.path());
    let away = dir.path().join("away");
    std::fs::rename(&files.private_key, &away).unwrap();
    assert!(matches!(tls.refresh(), Some(Err(Error::Read { .. }))));
    assert!(tls.refresh().is_none());
    put(&files.certificate, "");
    assert!(matches!(tls.refresh(), Some(Err(Error::NoCertificate { .. }))), "another failure");
    write_pair(dir.path(), "one", &["one.example"]);
    assert!(matches!(tls.refresh(), Some(Ok(()))));
}

/// As Kubernetes replaces secrets: the links to the files stay, and the link to their folder is another.
#[test]
fn a_link_that_leads_elsewhere_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let turn_to = |folder: &str| {
        std::os::unix::fs::symlink(folder, path("data.new")).unwrap();
        std::fs::rename(path("data.new"), path("data")).unwrap();
    };
    for folder in ["one", "two", "empty"] {
        std::fs::create_dir(path(folder)).unwrap();
    }
    write_pair(&path("one"), "tls", &["one.example"]);
    write_pair(&path("two"), "tls", &["one.example"]);
    turn_to("one");
    let (certificate, private_key) = (path("live.crt"), path("live.key"));
    std::os::unix::fs::symlink("data/tls.crt", &certificate).unwrap();
    std::os::unix::fs::symlink("data/tls.key", &private_key).unwrap();
    let live = CertificateFiles { names: Vec::new(), certificate, private_key };
    let (tls, _) = node(&of_files(&[&live]), dir.path());
    turn_to("two");
    assert!(matches!(tls.refresh(), Some(Ok(()))));
    for _ in 0..2 {
        turn_to("empty");
        assert!(matches!(tls.refresh(), Some(Err(Error::Read { .. }))));
        turn_to("two");
        assert!(matches!(tls.refresh(), Some(Ok(()))), "well again, with the very files that are in use");
    }
}

#[tokio::test]
async fn self_signed_nodes_of_one_directory_show_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let config = TlsConfig {
        source: CertificateSource::SelfSigned(names),
        shared_secret_file: None,
        quic_reset: QuicReset::Node,
    };
    let (one, _) = node(&config, dir.path());
    let (other, _) = node(&config, dir.path());
    let file = dir.path().join("tls/self-signed.crt");
    for name in ["localhost", "127.0.0.1"] {
        assert_eq!(shown(&one, &file, name).await, shown(&other, &file, name).await);
    }
    assert!(one.refresh().is_none());
    std::fs::remove_file(&file).unwrap();
    assert!(matches!(one.refresh(), Some(Ok(()))));
    assert!(matches!(other.refresh(), Some(Ok(()))));
    assert!(one.refresh().is_none() && other.refresh().is_none());
    assert_eq!(shown(&one, &file, "localhost").await, shown(&other, &file, "localhost").await);
}

#[test]
fn what_is_wrong_with_a_file_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let good = write_pair(dir.path(), "good", &["good.example"]);
    let file = |name: &str, content: &str| {
        put(&dir.path().join(name), content);
        dir.path().join(name)
    };
    let key = std::fs::read_to_string(&good.private_key).unwrap();
    let with_chain = |path| of_files(&[&CertificateFiles { certificate: path, ..good.clone() }]);
    let with_key = |path| of_files(&[&CertificateFiles { private_key: path, ..good.clone() }]);
    let no_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let no_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    for (config, expected) in [
        (with_chain(dir.path().join("absent.crt")), "cannot read \"/"),
        (with_chain(file("key.crt", &key)), "key.crt\" holds no PEM certificate"),
        (with_chain(file("cut.crt", &no_certificate[..40])), "cut.crt\" is broken PEM"),
        (with_chain(file("bad.crt", no_certificate)), "bad.crt\" cannot be understood"),
        (with_key(file("empty.key", "")), "empty.key\" holds no PEM private key"),
        (with_key(file("bad.key", no_key)), "bad.key\" is broken"),
        (with_key(write_pair(dir.path(), "other", &["a"]).private_key), "other.key\" does not match"),
    ] {
        let text = failure(&config, dir.path()).to_string();
        assert!(text.contains(expected), "{text}\nis not: {expected}");
    }
}

#[test]
fn the_end_of_each_certificate_in_use_is_a_metric() {
    let dir = tempfile::tempdir().unwrap();
    let one = write_pair(dir.path(), "one", &["one.example", "www.one.example"]);
    let two = write_pair(dir.path(), "two", &["two.example"]);
    let nameless = write_pair(dir.path(), "nameless", &[]);
    let (tls, registry) = node(&of_files(&[&one, &two, &nameless]), dir.path());
    // 4096-01-01, as rcgen has it by default.
    let expect = |labels: &[&str]| {
        let text = String::from_utf8(crate::telemetry::encode(&registry)).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let line = |label: &&str| {
            const NAME: &str = "forefront_listener_certificate_not_after_timestamp_seconds";
            format!("{NAME}{{certificate=\"{label}\"}} 67090118400")
        };
        assert_eq!(lines, labels.iter().map(line).collect::<Vec<_>>());
    };
    expect(&["nameless", "one.example", "two.example"]);
    tls.reload(&of_files(&[&one])).unwrap();
    expect(&["one.example"]);
}

/// A pair that ended with the year 2000.
fn write_old_pair(dir: &Path, stem: &str, names: &[&str]) -> CertificateFiles {
    let files = write_pair(dir, stem, names);
    let key = rcgen::KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = rcgen::CertificateParams::new(names).unwrap();
    params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    put(&files.certificate, &params.self_signed(&key).unwrap().pem());
    put(&files.private_key, &key.serialize_pem());
    files
}

#[test]
fn of_two_certificates_without_a_name_the_metric_tells_the_nearer_end() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    let (new, old) = (write_pair(dir.path(), "same", &[]), write_old_pair(&folder, "same", &[]));
    for files in [[&new, &old], [&old, &new]] {
        let (_tls, registry) = node(&of_files(&files), dir.path());
        let text = String::from_utf8(crate::telemetry::encode(&registry)).unwrap();
        assert!(text.contains("{certificate=\"same\"} 978307200\n"), "{text}");
    }
}

#[test]
fn a_certificate_whose_time_is_over_is_still_shown() {
    let dir = tempfile::tempdir().unwrap();
    let files = write_old_pair(dir.path(), "old", &["old.example"]);
    assert!(Tls::new(&of_files(&[&files]), dir.path(), &Registry::new()).is_ok());
}
