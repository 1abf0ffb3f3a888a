//! `[tls]`. The files it names are opened by whoever uses them, not here.

use std::net::IpAddr;
use std::path::PathBuf;

use rustls::pki_types::DnsName;

use super::path;
use crate::config::reader::{Place, Section, Value};
use crate::listener::{CertificateFiles, CertificateSource, QuicReset, TlsConfig};

pub(in crate::config) const QUIC_RESETS: [(&str, QuicReset); 2] =
    [("node", QuicReset::Node), ("shared", QuicReset::Shared)];

/// What a line of it looks like.
const CERTIFICATE: &str = "certificate = \"/path/of/chain.pem\"";
const PRIVATE_KEY: &str = "private_key = \"/path/of/key.pem\"";

/// None if the section is not given.
pub(super) fn read(mut section: Section<'_>) -> Option<TlsConfig> {
    let config = TlsConfig {
        source: source(&mut section),
        shared_secret_file: section.optional("shared_secret_file", path),
        quic_reset: section.or("quic_reset", QuicReset::default(), |value| value.choice(&QUIC_RESETS)),
    };
    if config.quic_reset == QuicReset::Shared && !section.has("shared_secret_file") {
        section.place_of("quic_reset").refuse(
            "needs shared_secret_file",
            "add shared_secret_file = \"/path\", or write quic_reset = \"node\"",
        );
    }
    let given = section.is_given();
    section.finish();
    given.then_some(config)
}

/// What `certificate` is: TOML has either a text or tables under one key.
enum Certificate {
    One(PathBuf),
    Several(Vec<CertificateFiles>),
}

fn source(section: &mut Section<'_>) -> CertificateSource {
    let certificate = section.optional("certificate", certificate);
    let private_key = section.optional("private_key", path);
    let self_signed = section.optional("self_signed", self_signed);
    if section.is_given() {
        tell_inconsistencies(section, certificate.as_ref());
    }
    match certificate {
        Some(Certificate::Several(files)) => CertificateSource::Files(files),
        Some(Certificate::One(certificate)) => {
            let private_key = private_key.unwrap_or_default();
            CertificateSource::Files(vec![CertificateFiles { names: Vec::new(), certificate, private_key }])
        }
        // Without names something was told, and the settings are thrown away.
        None => CertificateSource::SelfSigned(self_signed.unwrap_or_default()),
    }
}

fn tell_inconsistencies(section: &Section<'_>, certificate: Option<&Certificate>) {
    let [self_signed, files, key] =
        ["self_signed", "certificate", "private_key"].map(|name| section.has(name));
    let refuse = |name: &str, message: &str, hint: &str| section.place_of(name).refuse(message, hint);
    match certificate {
        _ if self_signed && (files || key) => {
            refuse("self_signed", "stands beside a certificate of files", "keep one of the two");
        }
        _ if !self_signed && !files && !key => section.place().refuse(
            "names no certificate",
            "add self_signed = [\"localhost\"], or certificate and private_key",
        ),
        _ if key && !files => refuse("private_key", "has no certificate", &format!("add {CERTIFICATE}")),
        Some(Certificate::One(_)) if !key => {
            refuse("certificate", "has no private_key", &format!("add {PRIVATE_KEY}"));
        }
        Some(Certificate::Several(_)) if key => {
            refuse("private_key", "is beside several certificates", "give each [[tls.certificate]] its own");
        }
        _ => {}
    }
}

fn certificate(value: Value<'_>) -> Option<Certificate> {
    if !value.is_list() {
        return path(value).map(Certificate::One);
    }
    let mut named = Named::default();
    let sections = value.list_of_some(Value::into_section)?;
    Some(Certificate::Several(sections.into_iter().map(|section| files(section, &mut named)).collect()))
}

fn files(mut section: Section<'_>, named: &mut Named) -> CertificateFiles {
    let names = section.optional("names", |value| value.list_of_some(|value| value.placed(server_name)));
    let files = CertificateFiles {
        names: named.add(names.unwrap_or_default(), "has a certificate already"),
        certificate: section.required("certificate", CERTIFICATE, path).unwrap_or_default(),
        private_key: section.required("private_key", PRIVATE_KEY, path).unwrap_or_default(),
    };
    section.finish();
    files
}

fn self_signed(value: Value<'_>) -> Option<Vec<String>> {
    let names = value.list_of_some(|value| value.placed(host))?;
    Some(Named::default().add(names, "is there twice"))
}

/// Names that were given before.
#[derive(Default)]
struct Named(Vec<String>);

impl Named {
    fn add(&mut self, names: Vec<(String, Place<'_>)>, message: &str) -> Vec<String> {
        for (name, place) in &names {
            if self.0.contains(name) {
                place.refuse(&format!("{name:?} {message}"), "name it once");
            }
            self.0.push(name.clone());
        }
        names.into_iter().map(|(name, _)| name).collect()
    }
}

/// What a client may ask for by SNI, in lower case.
fn server_name(value: Value<'_>) -> Option<String> {
    let place = value.place();
    let text = value.text()?;
    let name = dns_name(text);
    if name.is_none() {
        refuse_name(&place, text, "write e.g. \"example.com\" or \"*.example.com\"");
    }
    name
}

/// What a certificate can be for: a server name, or an address, which no client asks for by SNI.
fn host(value: Value<'_>) -> Option<String> {
    let place = value.place();
    let text = value.text()?;
    let name = text.parse().ok().map(|address: IpAddr| address.to_string()).or_else(|| dns_name(text));
    if name.is_none() {
        refuse_name(&place, text, "write e.g. \"example.com\", \"*.example.com\", \"192.0.2.1\" or \"::1\"");
    }
    name
}

fn refuse_name(place: &Place<'_>, text: &str, hint: &str) {
    place.refuse(&format!("{text:?} is not a name of a server"), hint);
}

/// With `*` for the whole first label at most (RFC 9525, 6.3).
fn dns_name(text: &str) -> Option<String> {
    let name = text.strip_prefix("*.").unwrap_or(text);
    // The dot at the end of an absolute name is not part of it in SNI (RFC 6066, 3).
    (DnsName::try_from(name).is_ok() && !name.ends_with('.')).then(|| text.to_ascii_lowercase())
}
