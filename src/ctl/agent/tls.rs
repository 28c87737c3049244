//! TLS 1.3 to an agent on another machine, with a client certificate.

use crate::report::Usage;
use anyhow::{Context as _, bail};
use rustls::{
    ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::ServerName, version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use std::{fmt, path::Path, sync::Arc};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use verify::wire::ChannelBinding;

/// The label of RFC 9266, section 4.2.
const EXPORTER: &[u8] = b"EXPORTER-Channel-Binding";

#[derive(Clone)]
pub struct Remote {
    authority: String,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority)
    }
}

impl Remote {
    /// Reads the files; connects to nobody.
    pub fn new(url: &str, ca: &Path, cert: &Path, key: &Path) -> anyhow::Result<Self> {
        let usage = || Usage(format!("--agent {url}: not https://HOST:PORT"));
        let authority = url.strip_prefix("https://").ok_or_else(usage)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (host, port) = authority.rsplit_once(':').ok_or_else(usage)?;
        port.parse::<u16>().map_err(|_| usage())?;
        let host = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(host);
        let name = ServerName::try_from(host.to_owned()).map_err(|_| usage())?;
        let mut roots = RootCertStore::empty();
        for root in certificates(ca)? {
            roots
                .add(root)
                .with_context(|| format!("{}: not a CA certificate", ca.display()))?;
        }
        let key = PrivateKeyDer::from_pem_file(key)
            .with_context(|| format!("reading the challenger's key {}", key.display()))?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .context("choosing TLS 1.3")?
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates(cert)?, key)
            .with_context(|| format!("using the certificate {}", cert.display()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            authority: authority.to_owned(),
            name,
            config: Arc::new(config),
        })
    }

    pub fn authority(&self) -> &str {
        &self.authority
    }

    pub async fn connect(&self) -> anyhow::Result<(TlsStream<TcpStream>, ChannelBinding)> {
        let stream = TcpStream::connect(&self.authority)
            .await
            .context("cannot connect; does the agent listen there (--listen)?")?;
        let stream = TlsConnector::from(self.config.clone())
            .connect(self.name.clone(), stream)
            .await
            .context("no TLS 1.3 connection; is its certificate of --agent-ca, for this name?")?;
        let exporter = stream
            .get_ref()
            .1
            .export_keying_material([0; 32], EXPORTER, None)
            .context("tying the challenge to the connection")?;
        Ok((stream, ChannelBinding::TlsExporter(exporter)))
    }
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let all: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .with_context(|| format!("reading the certificates {}", path.display()))?;
    if all.is_empty() {
        bail!("{} holds no certificate (PEM)", path.display());
    }
    Ok(all)
}
