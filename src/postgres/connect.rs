//! One connection over a socket of our own, so that it is known whether the other side ever answered.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use rustix::net::sockopt;
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_postgres::{Client, Config, tls::MakeTlsConnect};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{TlsOptions, pgpass};

/// Who we are to the server. The password comes from the environment or a file, never from an argument.
#[derive(Debug, Clone, clap::Args)]
pub struct Credentials {
    /// Role to log in as
    #[arg(long, env = "PGUSER", default_value = "postgres")]
    pub user: String,

    /// Database to connect to
    #[arg(long, env = "PGDATABASE", default_value = "postgres")]
    pub dbname: String,

    /// File with the role's password; without it PGPASSWORD, then PGPASSFILE are used
    #[arg(long, env = "LIFEBOAT_PASSWORD_FILE", value_name = "FILE")]
    pub password_file: Option<PathBuf>,
}

impl Credentials {
    /// Reads the password: from the flag's file, `PGPASSWORD`, or the file that `PGPASSFILE` names.
    pub fn password(&self, host: &str, port: u16) -> anyhow::Result<Option<SecretString>> {
        let given = crate::secret::read(self.password_file.as_deref(), "PGPASSWORD")?;
        Ok(given.or_else(|| pgpass::lookup(host, port, &self.dbname, &self.user)))
    }
}

/// A server to connect to, with everything but the time limit.
#[derive(Debug, Clone)]
pub struct Server {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Role and database.
    pub credentials: Credentials,
    /// The role's password.
    pub password: Option<SecretString>,
    /// TLS.
    pub tls: TlsOptions,
}

/// Why a connection did not come about, with what a classification needs.
#[derive(Debug)]
pub enum ConnectError {
    /// The TLS options can't be used.
    Options(anyhow::Error),
    /// No TCP connection.
    Tcp(io::Error),
    /// The PostgreSQL or TLS handshake ended.
    Handshake {
        /// What ended it.
        error: tokio_postgres::Error,
    },
}

/// An open session and the task that drives it.
#[derive(Debug)]
pub struct Connected {
    /// The session.
    pub client: Client,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The addresses of the server's name, at least one; or the resolver's own error. No time limit here: the caller sets one.
pub async fn resolve(server: &Server) -> io::Result<Vec<SocketAddr>> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((server.host.as_str(), server.port)).await?.collect();
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(addresses)
}

/// Connects once, to one address. `answered` turns true when the first byte arrives. No time limit here: the caller sets one.
pub async fn connect(
    server: &Server,
    address: SocketAddr,
    mut connector: MakeRustlsConnect,
    answered: Arc<AtomicBool>,
) -> Result<Connected, ConnectError> {
    let connector = MakeTlsConnect::<Watched>::make_tls_connect(&mut connector, &server.host)
        .map_err(|error| ConnectError::Options(error.into()))?;
    let stream = TcpStream::connect(address).await.map_err(ConnectError::Tcp)?;
    stream.set_nodelay(true).map_err(ConnectError::Tcp)?;
    keep_alive(&stream).map_err(ConnectError::Tcp)?;
    let stream = Watched { stream, answered };
    let mut config = Config::new();
    config
        .user(&server.credentials.user)
        .dbname(&server.credentials.dbname)
        .application_name("lifeboat")
        .ssl_mode(server.tls.mode());
    if let Some(password) = &server.password {
        config.password(password.expose_secret());
    }
    let (client, connection) =
        config.connect_raw(stream, connector).await.map_err(|error| ConnectError::Handshake { error })?;
    let driver = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!("connection ended: {error}");
        }
    });
    Ok(Connected { client, driver })
}

/// A server that vanished without a word is given up within a minute, however long a statement may take.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(30))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    Ok(sockopt::set_tcp_user_timeout(stream, 60_000)?)
}

/// A stream that remembers whether a byte ever came back.
struct Watched {
    stream: TcpStream,
    answered: Arc<AtomicBool>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.answered.store(true, Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
