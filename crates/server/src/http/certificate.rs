//! The certificate that calls are encrypted under: the operator's own files, read again when they change, or one
//! that the node makes for itself.
//!
//! A certificate of the node's own is signed by its own key. Whoever calls trusts it by having its file, as
//! commands on the same data folder do. Before it ends the node makes another with the same key, which whoever
//! trusts the old one trusts too.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use anyhow::{Context, bail};
use aws_lc_rs::digest;
use chrono::{DateTime, Datelike};
use highwater_event::Clock;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::node::{replace, replace_secret};
use crate::outgoing::provider;

/// Of a data folder: the certificate that the node has made for itself.
pub const OWN_CERTIFICATE: &str = "tls/certificate.pem";
const OWN_KEY: &str = "tls/key.pem";
/// How long a certificate of the node's own is good, and how much of that is left when it is made anew.
const OWN_LIFE: i64 = 398 * 86_400;
const OWN_MARGIN: i64 = 30 * 86_400;
/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// When calls are encrypted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Unless nobody but this machine can call.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never: something in front of the node does it.
    Off,
}

/// How calls are encrypted.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// When.
    pub mode: Mode,
    /// The operator's certificate chain and its key, PEM.
    pub files: Option<(PathBuf, PathBuf)>,
    /// Names that a certificate of the node's own has beyond those of this machine.
    pub names: Vec<String>,
}

impl Tls {
    /// Whether calls to an address are encrypted.
    pub fn is_on(&self, listen: SocketAddr) -> bool {
        match self.mode {
            Mode::On => true,
            Mode::Off => false,
            Mode::Auto => self.files.is_some() || !listen.ip().is_loopback(),
        }
    }

    /// Reads the certificate, or makes one.
    pub fn open(
        &self,
        data: &Path,
        listen: SocketAddr,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<Arc<Certificate>> {
        let (chain, key, own) = match &self.files {
            Some((chain, key)) => (chain.clone(), key.clone(), None),
            None => (data.join(OWN_CERTIFICATE), data.join(OWN_KEY), Some(names(listen, &self.names))),
        };
        let now = seconds(clock.as_ref());
        if let Some(names) = &own {
            make(&chain, &key, names, now)?;
        }
        let current = read(&chain, &key)?;
        if current.until <= now {
            bail!("the certificate in {} has ended; put a new one in its place", chain.display());
        }
        Ok(Arc::new(Certificate { chain, key, own, clock, current: RwLock::new(current) }))
    }
}

/// A certificate in use.
pub struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    /// The names of one that the node makes itself.
    own: Option<Vec<String>>,
    clock: Arc<dyn Clock>,
    current: RwLock<Current>,
}

struct Current {
    certified: Arc<CertifiedKey>,
    /// Of the files that it was read from.
    content: [u8; 32],
    /// Seconds UTC.
    until: i64,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate").field("chain", &self.chain).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).certified.clone())
    }
}

impl Certificate {
    /// The file with the certificate, when the node has made it itself.
    pub fn own(&self) -> Option<&Path> {
        self.own.as_ref().map(|_| self.chain.as_path())
    }

    /// SHA-256 of the certificate, as browsers show it.
    pub fn fingerprint(&self) -> String {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let first = current.certified.cert.first();
        let hash = first.map(|first| digest::digest(&digest::SHA256, first));
        hash.map(|hash| {
            hash.as_ref().iter().enumerate().fold(String::new(), |mut text, (at, byte)| {
                // Writing to a string can't fail.
                let written = write!(text, "{}{byte:02X}", if at == 0 { "" } else { ":" });
                debug_assert!(written.is_ok());
                text
            })
        })
        .unwrap_or_default()
    }

    /// When it ends: seconds UTC.
    pub fn until(&self) -> i64 {
        self.current.read().unwrap_or_else(PoisonError::into_inner).until
    }

    /// Takes what the files hold now; whether that is something else. Connections go on under the old one.
    pub fn reload(&self) -> anyhow::Result<bool> {
        let now = seconds(self.clock.as_ref());
        if let Some(names) = &self.own {
            make(&self.chain, &self.key, names, now)?;
        }
        let fresh = read(&self.chain, &self.key)?;
        if fresh.until <= now {
            bail!("the certificate in {} has ended", self.chain.display());
        }
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let changed = current.content != fresh.content;
        *current = fresh;
        Ok(changed)
    }
}

/// Looks at the files until nobody uses the certificate any more.
pub async fn watch(certificate: Weak<Certificate>) {
    let mut said = String::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(certificate) = certificate.upgrade() else { return };
        let looked = tokio::task::spawn_blocking(move || (certificate.reload(), certificate.until()));
        let Ok((outcome, until)) = looked.await else { continue };
        metrics::gauge!("highwater_tls_certificate_ends_seconds").set(until as f64);
        match outcome {
            Ok(true) => tracing::info!("the certificate was replaced"),
            Ok(false) => said.clear(),
            // Said once: files are often replaced one after the other.
            Err(error) if said != format!("{error:#}") => {
                tracing::error!("the certificate that was read before stays in use: {error:#}");
                said = format!("{error:#}");
            }
            Err(_) => {}
        }
    }
}

fn seconds(clock: &dyn Clock) -> i64 {
    clock.now_micros() / 1_000_000
}

fn read(chain: &Path, key: &Path) -> anyhow::Result<Current> {
    let load = |path: &Path| std::fs::read(path).with_context(|| format!("{} can't be read", path.display()));
    let (chain_pem, key_pem) = (load(chain)?, load(key)?);
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&chain_pem)
        .collect::<Result<_, _>>()
        .with_context(|| format!("{} is not PEM", chain.display()))?;
    let Some(first) = certificates.first() else {
        bail!("{} holds no certificate: it must begin with -----BEGIN CERTIFICATE-----", chain.display());
    };
    let (_, parsed) = x509_parser::parse_x509_certificate(first)
        .with_context(|| format!("{} does not hold a certificate", chain.display()))?;
    let until = parsed.validity().not_after.timestamp();
    let private = PrivateKeyDer::from_pem_slice(&key_pem).with_context(|| {
        format!("{} holds no private key that can be read without a password", key.display())
    })?;
    let certified = CertifiedKey::from_der(certificates, private, &provider())
        .with_context(|| format!("the key in {} does not fit {}", key.display(), chain.display()))?;
    let mut content = digest::Context::new(&digest::SHA256);
    content.update(&chain_pem);
    content.update(&key_pem);
    let content = content.finish().as_ref().try_into().unwrap_or_default();
    Ok(Current { certified: Arc::new(certified), content, until })
}

/// What this machine is called by.
fn names(listen: SocketAddr, more: &[String]) -> Vec<String> {
    let mut names: BTreeSet<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    if !listen.ip().is_unspecified() {
        names.insert(listen.ip().to_string());
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname");
    names.extend(host.ok().map(|host| host.trim().to_owned()).filter(|host| !host.is_empty()));
    names.extend(more.iter().cloned());
    names.into_iter().collect()
}

/// Makes a certificate unless there is one that has these names and is good for a while.
fn make(chain: &Path, key: &Path, names: &[String], now: i64) -> anyhow::Result<()> {
    if chain.exists() && is_good(chain, names, now)? {
        return Ok(());
    }
    let pair = if key.exists() {
        let text =
            std::fs::read_to_string(key).with_context(|| format!("{} can't be read", key.display()))?;
        rcgen::KeyPair::from_pem(&text).with_context(|| format!("{} does not hold a key", key.display()))?
    } else {
        let pair = rcgen::KeyPair::generate()?;
        replace_secret(key, &pair.serialize_pem())?;
        pair
    };
    let mut parameters =
        rcgen::CertificateParams::new(names.to_vec()).context("a name of tls.names is not one")?;
    let mut subject = rcgen::DistinguishedName::new();
    // Whoever trusts an earlier one finds this one by its subject.
    subject.push(rcgen::DnType::CommonName, "highwater");
    parameters.distinguished_name = subject;
    parameters.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let day = |seconds| -> anyhow::Result<_> {
        let date =
            DateTime::from_timestamp(seconds, 0).context("no certificate can say what the clock does")?;
        Ok(rcgen::date_time_ymd(date.year(), date.month() as u8, date.day() as u8))
    };
    parameters.not_before = day(now - 86_400)?;
    parameters.not_after = day(now + OWN_LIFE)?;
    replace(chain, parameters.self_signed(&pair)?.pem().as_bytes(), 0o644)
}

fn is_good(chain: &Path, names: &[String], now: i64) -> anyhow::Result<bool> {
    let pem = std::fs::read(chain).with_context(|| format!("{} can't be read", chain.display()))?;
    let Ok(der) = CertificateDer::from_pem_slice(&pem) else { return Ok(false) };
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(&der) else { return Ok(false) };
    let alternative = parsed.subject_alternative_name().ok().flatten();
    let has =
        alternative.map(|names| names.value.general_names.iter().filter_map(shown).collect::<BTreeSet<_>>());
    let enough = has.is_some_and(|has| names.iter().all(|name| has.contains(name)));
    Ok(enough && parsed.validity().not_after.timestamp() > now + OWN_MARGIN)
}

fn shown(name: &x509_parser::extensions::GeneralName<'_>) -> Option<String> {
    use x509_parser::extensions::GeneralName;
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => Some(IpAddr::from(<[u8; 4]>::try_from(*bytes).ok()?).to_string()),
            _ => Some(IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string()),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_event::ManualClock;

    const START: i64 = 1_900_000_000;

    fn clock() -> Arc<ManualClock> {
        Arc::new(ManualClock::at(START * 1_000_000))
    }

    fn address() -> SocketAddr {
        "192.0.2.7:7700".parse().unwrap()
    }

    #[test]
    fn off_loopback_calls_are_encrypted_unless_somebody_says_no() {
        let loopback: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let mut tls = Tls::default();
        assert!(!tls.is_on(loopback) && tls.is_on(address()) && tls.is_on("[::]:1".parse().unwrap()));
        tls.mode = Mode::Off;
        assert!(!tls.is_on(address()));
        tls.mode = Mode::On;
        assert!(tls.is_on(loopback));
    }

    #[test]
    fn a_certificate_of_its_own_is_kept_and_made_anew_with_the_same_key() {
        let folder = tempfile::tempdir().unwrap();
        let clock = clock();
        let open = |tls: &Tls| tls.open(folder.path(), address(), clock.clone()).unwrap();
        let first = open(&Tls::default());
        assert_eq!(open(&Tls::default()).fingerprint(), first.fingerprint(), "a start keeps it");
        let key = std::fs::read(folder.path().join(OWN_KEY)).unwrap();
        let more = open(&Tls { names: vec!["node.example".into()], ..Tls::default() });
        assert_ne!(more.fingerprint(), first.fingerprint(), "another name needs another one");
        clock.advance((OWN_LIFE - OWN_MARGIN + 86_400) * 1_000_000);
        assert!(more.reload().unwrap(), "a month before its end there is another");
        assert!(more.until() > START + OWN_LIFE);
        assert_eq!(std::fs::read(folder.path().join(OWN_KEY)).unwrap(), key);
    }

    #[test]
    fn files_that_can_t_be_used_are_refused_and_the_one_in_use_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        let clock = clock();
        for data in [&one, &two] {
            Tls::default().open(data, address(), clock.clone()).unwrap();
        }
        let files = |chain: &Path, key: &Path| Tls {
            files: Some((chain.join(OWN_CERTIFICATE), key.join(OWN_KEY))),
            ..Tls::default()
        };
        let open = |tls: Tls| tls.open(folder.path(), address(), clock.clone());
        let fits = |error: anyhow::Error, wanted: &str| {
            assert!(format!("{error:#}").contains(wanted), "{error:#}");
        };
        fits(open(files(&one, &two)).unwrap_err(), "does not fit");
        fits(open(files(&folder.path().join("none"), &one)).unwrap_err(), "can't be read");
        let certificate = open(files(&one, &one)).unwrap();
        let before = certificate.fingerprint();
        let keep = std::fs::read(one.join(OWN_CERTIFICATE)).unwrap();
        std::fs::write(one.join(OWN_CERTIFICATE), "no certificate").unwrap();
        fits(certificate.reload().unwrap_err(), "holds no certificate");
        std::fs::copy(two.join(OWN_CERTIFICATE), one.join(OWN_CERTIFICATE)).unwrap();
        fits(certificate.reload().unwrap_err(), "does not fit");
        assert_eq!(certificate.fingerprint(), before);
        std::fs::copy(two.join(OWN_KEY), one.join(OWN_KEY)).unwrap();
        assert!(certificate.reload().unwrap() && certificate.fingerprint() != before);
        assert!(!certificate.reload().unwrap(), "the same files are no change");
        std::fs::write(one.join(OWN_CERTIFICATE), keep).unwrap();
        clock.advance(2 * OWN_LIFE * 1_000_000);
        fits(open(files(&two, &two)).unwrap_err(), "has ended");
    }
}
