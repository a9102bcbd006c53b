//! Calls that this program makes to others: to a node, a sign-in provider, a witness, a webhook.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

/// How long it may take until a connection stands.
const CONNECT: Duration = Duration::from_secs(5);

/// Whom to believe that they are who they say, and how long to wait.
#[derive(Debug, Clone, Default)]
pub struct Outgoing {
    /// PEM files with certificates that are believed beside those of this machine.
    pub trusted: Vec<PathBuf>,
    /// How long a whole call may take; without it as long as it lasts.
    pub timeout: Option<Duration>,
    /// Answers that point elsewhere are followed so often.
    pub redirects: u32,
}

impl Outgoing {
    /// What makes calls. Any status is an answer, not an error.
    pub fn agent(&self, url: &str) -> anyhow::Result<ureq::Agent> {
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(self.redirects)
            .max_redirects_will_error(false)
            .timeout_global(self.timeout)
            .timeout_connect(Some(CONNECT));
        // Reading the certificates of the machine takes some milliseconds.
        if url.starts_with("https://") {
            let roots = RootCerts::Specific(Arc::new(self.roots()?));
            let tls = TlsConfig::builder().provider(TlsProvider::Rustls).root_certs(roots);
            config = config.tls_config(tls.unversioned_rustls_crypto_provider(provider()).build());
        }
        Ok(config.build().into())
    }

    fn roots(&self) -> anyhow::Result<Vec<Certificate<'static>>> {
        let mut roots: Vec<CertificateDer<'static>> = rustls_native_certs::load_native_certs().certs;
        for file in &self.trusted {
            roots.extend(read(file)?);
        }
        Ok(roots.iter().map(|root| Certificate::from_der(root.as_ref()).to_owned()).collect())
    }
}

/// The cryptography behind encrypted calls, those that come in, too.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn read(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let shown = file.display();
    let pem = std::fs::read(file).with_context(|| format!("{shown} can't be read"))?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .with_context(|| format!("{shown} is not PEM"))?;
    if found.is_empty() {
        bail!("{shown} holds no certificate: it must begin with -----BEGIN CERTIFICATE-----");
    }
    Ok(found)
}
