//! TLS to PostgreSQL with libpq's modes (PostgreSQL documentation 32.19.1, "Client Verification of Server Certificates").

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, anyhow};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::outcome::Misconfigured;

/// libpq's `sslmode`, without `allow`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS where the server offers it; the certificate isn't checked.
    #[default]
    Prefer,
    /// TLS or nothing; the certificate isn't checked.
    Require,
    /// TLS, and the certificate must come from the authority in `--sslrootcert`.
    VerifyCa,
    /// As verify-ca, and the certificate must name the host.
    VerifyFull,
}

/// How to protect a connection.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TlsOptions {
    /// TLS mode, with libpq's meaning; prefer and require don't check the server's certificate
    #[arg(long, env = "PGSSLMODE", value_enum, default_value = "prefer")]
    pub sslmode: SslMode,

    /// PEM file of the authority that must have signed the server's certificate (verify-ca, verify-full)
    #[arg(long, env = "PGSSLROOTCERT", value_name = "FILE")]
    pub sslrootcert: Option<PathBuf>,
}

impl TlsOptions {
    /// tokio-postgres knows three of the modes; the certificate check of the others is in [`TlsOptions::connector`].
    #[must_use]
    pub fn mode(&self) -> tokio_postgres::config::SslMode {
        match self.sslmode {
            SslMode::Disable => tokio_postgres::config::SslMode::Disable,
            SslMode::Prefer => tokio_postgres::config::SslMode::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => tokio_postgres::config::SslMode::Require,
        }
    }

    /// Builds the TLS client. A verifying mode without a readable authority is a configuration error.
    pub fn connector(&self) -> anyhow::Result<MakeRustlsConnect> {
        let provider = Arc::new(ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        let verifier: Arc<dyn ServerCertVerifier> = match self.sslmode {
            SslMode::Disable | SslMode::Prefer | SslMode::Require => Arc::new(Unverified { provider }),
            SslMode::VerifyCa => Arc::new(AnyName { authority: self.authority(provider)? }),
            SslMode::VerifyFull => self.authority(provider)?,
        };
        let config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
        Ok(MakeRustlsConnect::new(config))
    }

    fn authority(&self, provider: Arc<CryptoProvider>) -> anyhow::Result<Arc<WebPkiServerVerifier>> {
        let path = self
            .sslrootcert
            .as_deref()
            .ok_or_else(|| anyhow!("sslmode verify-ca and verify-full need --sslrootcert FILE"))
            .context(Misconfigured)?;
        let read = || -> anyhow::Result<_> {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_file_iter(path)? {
                roots.add(certificate?)?;
            }
            Ok(WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?)
        };
        read().with_context(|| format!("read root certificates from {}", path.display())).context(Misconfigured)
    }
}

/// A TLS client that takes every certificate, for one who only wants to see it.
pub fn unverified_client() -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let verifier = Arc::new(Unverified { provider });
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Encrypts without knowing to whom, as libpq's `prefer` and `require` do.
#[derive(Debug)]
struct Unverified {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Checks the authority but not the name, as libpq's `verify-ca` does.
#[derive(Debug)]
struct AnyName {
    authority: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.authority.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // webpki checks the name last: a certificate that fails only there came from the authority.
            Err(rustls::Error::InvalidCertificate(
                rustls::CertificateError::NotValidForName | rustls::CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authority.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authority.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authority.supported_verify_schemes()
    }
}
