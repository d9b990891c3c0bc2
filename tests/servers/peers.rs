//! Peers that are no PostgreSQL: they accept and misbehave.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// A listener of the test's own; it ends with the value, and with it every connection that it kept.
pub struct Peer {
    pub address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
    kept: Arc<Mutex<Vec<TcpStream>>>,
    accepting: Option<thread::JoinHandle<()>>,
}

impl Peer {
    /// Serves each connection on a thread of its own; what `serve` returns stays open.
    pub fn start(serve: impl Fn(TcpStream) -> Option<TcpStream> + Send + Sync + 'static) -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into(), serve)
    }

    /// The same, at this address.
    pub fn start_at(
        address: SocketAddr,
        serve: impl Fn(TcpStream) -> Option<TcpStream> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, ended, kept) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default(), Arc::default());
        let peer = (Arc::clone(&accepted), Arc::clone(&ended), Arc::<Mutex<Vec<TcpStream>>>::clone(&kept));
        let serve = Arc::new(serve);
        let accepting = thread::spawn(move || {
            let (accepted, ended, kept) = peer;
            for stream in listener.incoming().map_while(Result::ok) {
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                accepted.fetch_add(1, Ordering::SeqCst);
                let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
                let (serve, kept) = (Arc::clone(&serve), Arc::clone(&kept));
                thread::spawn(move || {
                    if let Some(stream) = serve(stream) {
                        kept.lock().unwrap().push(stream);
                    }
                });
            }
        });
        Self { address, accepted, ended, kept, accepting: Some(accepting) }
    }

    /// Accepts and never says a word.
    pub fn silent() -> Self {
        Self::start(Some)
    }

    /// Accepts and closes.
    pub fn closing() -> Self {
        Self::start(|_| None)
    }

    /// Reads the first request, answers these bytes, then stays silent or closes.
    pub fn answering(bytes: &'static [u8], and_close: bool) -> Self {
        Self::start(move |mut stream| {
            let mut request = [0; 8];
            stream.read_exact(&mut request).ok()?;
            stream.write_all(bytes).ok()?;
            (!and_close).then_some(stream)
        })
    }

    /// Connections so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        if let Ok(mut kept) = self.kept.lock() {
            kept.clear();
        }
    }
}

/// A port that refuses: held by a socket that doesn't listen, so that nobody else gets it meanwhile.
pub struct ClosedPort {
    pub address: SocketAddr,
    _socket: tokio::net::TcpSocket,
}

impl ClosedPort {
    pub fn new() -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self { address: socket.local_addr().unwrap(), _socket: socket }
    }
}
