//! Challengers from elsewhere: TLS 1.3 alone, and nobody without a certificate of the challengers' CA.
//!
//! The certificate authorises: it says who asks, so who may see which log. It proves nothing about a
//! container; evidence proves itself. What the agent shows is for the challengers' secrecy alone.

use crate::{
    caller::{Caller, Peer},
    metrics::Metrics,
    seats::{Connection, Seats},
};
use anyhow::{Context as _, bail};
use rustls::{
    RootCertStore, ServerConfig, crypto::aws_lc_rs, server::WebPkiClientVerifier, version::TLS13,
};
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject as _,
};
use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use verify::wire::ChannelBinding;

/// Handshakes at once, and how long each may take.
const HANDSHAKES: usize = 64;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The label of RFC 9266, section 4.2.
const EXPORTER: &[u8] = b"EXPORTER-Channel-Binding";

/// Where what is shown and demanded comes from.
pub struct Files<'a> {
    /// The agent's certificate chain and its key (PEM).
    pub cert: &'a Path,
    pub key: &'a Path,
    /// Who issues challengers' certificates (PEM).
    pub challengers: &'a Path,
    /// Their revocation list.
    pub revocation: &'a Revocation,
}

/// Whether challengers' certificates are looked up in a revocation list; never silently not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revocation {
    Unchecked,
    Crl(PathBuf),
}

impl std::str::FromStr for Revocation {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "unchecked" => Self::Unchecked,
            file => Self::Crl(file.into()),
        })
    }
}

/// The configuration of every connection.
pub fn config(files: &Files<'_>) -> anyhow::Result<ServerConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for root in certificates(files.challengers)? {
        roots
            .add(root)
            .with_context(|| format!("{}: not a CA certificate", files.challengers.display()))?;
    }
    let mut verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    if let Revocation::Crl(path) = files.revocation {
        let crls: Result<Vec<_>, _> = CertificateRevocationListDer::pem_file_iter(path)
            .and_then(Iterator::collect)
            .map(|crls: Vec<_>| Ok::<_, anyhow::Error>(crls))
            .with_context(|| format!("reading the revocation list {}", path.display()))?;
        let crls = crls?;
        if crls.is_empty() {
            bail!("{} holds no revocation list (PEM)", path.display());
        }
        verifier = verifier.with_crls(crls).enforce_revocation_expiration();
    }
    let verifier = verifier.build().context("using the challengers' CA")?;
    let key = PrivateKeyDer::from_pem_file(files.key)
        .with_context(|| format!("reading the agent's key {}", files.key.display()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .context("choosing TLS 1.3")?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(files.cert)?, key)
        .with_context(|| {
            format!(
                "using the certificate {} with the key {}",
                files.cert.display(),
                files.key.display()
            )
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A resumed connection would count on what the first one proved.
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let context = || format!("reading the certificates {}", path.display());
    let all: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .with_context(context)?;
    if all.is_empty() {
        bail!("{} holds no certificate (PEM)", path.display());
    }
    Ok(all)
}

/// Connections whose challenger is known.
pub struct Tls {
    ready: mpsc::Receiver<(Connection<TlsStream<TcpStream>>, Peer)>,
    address: SocketAddr,
}

impl Tls {
    /// Listens; handshakes go on side by side, so that a slow one delays nobody.
    pub async fn bind(
        address: SocketAddr,
        config: ServerConfig,
        lifetime: Duration,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("listening on {address}"))?;
        let address = listener
            .local_addr()
            .context("asking for our own address")?;
        let (known, ready) = mpsc::channel(HANDSHAKES);
        let door = Door {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            seats: Seats::default(),
            lifetime,
            metrics,
            known,
        };
        tokio::spawn(door.keep(listener));
        Ok(Self { ready, address })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// What a handshake needs.
#[derive(Clone)]
struct Door {
    acceptor: TlsAcceptor,
    seats: Seats,
    lifetime: Duration,
    metrics: Arc<Metrics>,
    known: mpsc::Sender<(Connection<TlsStream<TcpStream>>, Peer)>,
}

impl Door {
    async fn keep(self, listener: TcpListener) {
        let turns = Arc::new(Semaphore::new(HANDSHAKES));
        loop {
            // Never closed; a full house waits in the kernel's queue.
            let turn = Arc::clone(&turns).acquire_owned().await;
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let door = self.clone();
            tokio::spawn(async move {
                let _turn = turn;
                let handshake = tokio::time::timeout(HANDSHAKE, door.admit(stream));
                match handshake.await.ok().flatten() {
                    // The receiver is gone when the agent stops.
                    Some(known) => drop(door.known.send(known).await),
                    None => drop(door.metrics.turned_away.fetch_add(1, Ordering::Relaxed)),
                }
            });
        }
    }

    /// `None`: no TLS 1.3, no acceptable certificate, or too many connections of this challenger.
    async fn admit(&self, stream: TcpStream) -> Option<(Connection<TlsStream<TcpStream>>, Peer)> {
        let stream = self.acceptor.accept(stream).await.ok()?;
        let (_, session) = stream.get_ref();
        let caller = Caller::Certified(only_uri(session.peer_certificates()?.first()?)?);
        let exporter = session
            .export_keying_material([0; 32], EXPORTER, None)
            .ok()?;
        let peer = Peer {
            caller,
            binding: ChannelBinding::TlsExporter(exporter),
        };
        let seat = self.seats.take(&peer.caller)?;
        Some((Connection::new(stream, self.lifetime, seat), peer))
    }
}

/// The URI in the certificate's subject alternative names, if there is exactly one.
fn only_uri(certificate: &CertificateDer<'_>) -> Option<String> {
    let leaf = webpki::EndEntityCert::try_from(certificate).ok()?;
    let mut uris = leaf.valid_uri_names();
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Some(uri.to_owned()),
        _ => None,
    }
}

impl axum::serve::Listener for Tls {
    type Io = Connection<TlsStream<TcpStream>>;
    type Addr = Peer;

    async fn accept(&mut self) -> (Self::Io, Peer) {
        match self.ready.recv().await {
            Some(known) => known,
            // The door is kept as long as the process lives.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
