//! TLS on the main listener: the certificate and its key, read again when the files change.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;

use crate::config::TlsConfig;

/// How often the files are looked at: who renews a certificate does so days before its end.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

pub struct Tls {
    files: TlsConfig,
    opened: Contents,
    current: RwLock<Arc<ServerConfig>>,
}

/// What the two files held.
#[derive(Clone, PartialEq)]
struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl Tls {
    /// Reads both files; [`Tls::keep`] looks after them.
    pub async fn open(files: &TlsConfig) -> anyhow::Result<Self> {
        let opened = read(files).await?;
        let current = RwLock::new(server_config(&opened)?);
        Ok(Self { files: files.clone(), opened, current })
    }

    /// For the next connection.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// New connections get what the files hold now. What is no certificate with its key, as in the
    /// middle of a change, leaves the one before in use.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) {
        // They may have changed while the node started.
        let mut seen = Some(self.opened.clone());
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
            let contents = match read(&self.files).await {
                Ok(contents) if seen.as_ref() == Some(&contents) => continue,
                Ok(contents) => contents,
                Err(error) => {
                    // Told once.
                    if seen.take().is_some() {
                        tracing::warn!("the certificate stays as it is: {error:#}");
                    }
                    continue;
                }
            };
            match server_config(&contents) {
                Ok(config) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
                    tracing::info!("new connections get the certificate that was renewed");
                }
                Err(error) => tracing::warn!("the certificate stays as it is: {error:#}"),
            }
            seen = Some(contents);
        }
    }
}

async fn read(files: &TlsConfig) -> anyhow::Result<Contents> {
    let cert = tokio::fs::read(&files.cert).await.context("TLS_CERT_FILE")?;
    let key = tokio::fs::read(&files.key).await.context("TLS_KEY_FILE")?;
    Ok(Contents { cert, key })
}

fn server_config(contents: &Contents) -> anyhow::Result<Arc<ServerConfig>> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&contents.cert).collect();
    let chain = chain.context("TLS_CERT_FILE")?;
    let key = PrivateKeyDer::from_pem_slice(&contents.key).context("TLS_KEY_FILE")?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("TLS")?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("TLS_CERT_FILE and TLS_KEY_FILE do not go together")?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Who comes back proves himself by what he got from here, without a signature and without
    // memory of ours.
    config.ticketer = ring::Ticketer::new().context("TLS tickets")?;
    Ok(Arc::new(config))
}
