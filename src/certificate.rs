//! Server certificates: as a folder has them, and as a server shows them.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use rustls::{
    ClientConnection,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};

use crate::postgres::unverified_client;

/// PostgreSQL's request for TLS (PostgreSQL documentation 54.7, "`SSLRequest`"): its length, and the number that stands for a version.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// `tls.crt` and `tls.key` of a folder, the keys of a Secret of type `kubernetes.io/tls`.
#[derive(Clone)]
pub struct Pair {
    /// The certificate and those that lead from it to its authority.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key as PEM.
    pub key: Vec<u8>,
}

impl Pair {
    /// Reads both, of one moment: the kubelet replaces a mounted Secret by moving a link, so the link is followed once. A key that isn't
    /// the certificate's is an error.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let certificate = folder.join("tls.crt");
        let certificate = fs::canonicalize(&certificate).with_context(|| format!("find {}", certificate.display()))?;
        let key = certificate.with_file_name("tls.key");
        let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
        let (text, key) = (read(&certificate)?, read(&key)?);
        let chain = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
        let chain = chain.with_context(|| format!("parse the certificates in {}", certificate.display()))?;
        if chain.is_empty() {
            bail!("{} holds no certificate", certificate.display());
        }
        let parsed =
            PrivateKeyDer::from_pem_slice(&key).context("parse tls.key as a private key without a password")?;
        CertifiedKey::from_der(chain.clone(), parsed, &ring::default_provider())
            .with_context(|| format!("tls.key does not belong to tls.crt in {}", folder.display()))?;
        Ok(Self { chain, key })
    }

    /// The server's own certificate.
    #[must_use]
    pub fn leaf(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }
}

/// How a server begins with TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// After a request in PostgreSQL's own protocol.
    Postgresql,
    /// At once, as HTTPS.
    Https,
}

/// The certificate that a server shows to whoever connects now; `None` where nobody answers. Whose it is isn't verified: the caller
/// compares it. An answer without TLS is an error.
pub async fn shown(
    address: SocketAddr,
    protocol: Protocol,
    timeout: Duration,
) -> anyhow::Result<Option<CertificateDer<'static>>> {
    tokio::task::spawn_blocking(move || match handshake(address, protocol, timeout) {
        // rustls says by this kind that it met no TLS.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(error).context("begin TLS"),
        Err(error) => {
            tracing::debug!("{address}: {error}");
            Ok(None)
        }
        Ok(certificate) => Ok(Some(certificate)),
    })
    .await
    .context("look at a certificate")?
}

fn handshake(address: SocketAddr, protocol: Protocol, timeout: Duration) -> io::Result<CertificateDer<'static>> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    if protocol == Protocol::Postgresql {
        let mut answer = [0];
        stream.write_all(&SSL_REQUEST)?;
        stream.read_exact(&mut answer)?;
        if answer != *b"S" {
            return Err(invalid("the server offers no TLS".to_owned()));
        }
    }
    let config = unverified_client().map_err(|error| invalid(error.to_string()))?;
    let mut tls =
        ClientConnection::new(Arc::new(config), address.ip().into()).map_err(|error| invalid(error.to_string()))?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream)?;
    }
    let shown = tls.peer_certificates().and_then(|chain| chain.first()).map(|leaf| leaf.clone().into_owned());
    // A connection that ends by a reset is an error in the server's log; one that is closed in order is not.
    tls.send_close_notify();
    let closed = tls.complete_io(&mut stream).and_then(|_| stream.shutdown(Shutdown::Write));
    if closed.is_ok() {
        let _ = io::copy(&mut stream, &mut io::sink());
    }
    shown.ok_or_else(|| invalid("the server shows no certificate".to_owned()))
}
