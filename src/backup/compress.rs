//! Compression on all cores with bounded memory, in formats that the usual tools read, and the digest of what is written.

use std::{
    fmt::Write as _,
    io::{self, Write},
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What a worker compresses at a time. Each block is a gzip member of its own (RFC 1952, 2.2: a file is a series of members).
const BLOCK: usize = 1 << 20;

/// How a set is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "codec", content = "level")]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, level 1 to 12 (libdeflate's).
    Gzip(u8),
    /// Zstandard, level 1 to 19.
    Zstd(u8),
}

impl Compression {
    /// What a file's name ends with.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip(_) => ".gz",
            Self::Zstd(_) => ".zst",
        }
    }
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hint = || {
            format!("{text:?} is no compression: write none, gzip, zstd, or with a level gzip:1 to 12, zstd:1 to 19")
        };
        let (codec, level) = text.split_once(':').map_or((text, None), |(codec, level)| (codec, Some(level)));
        let level = level.map(|level| level.parse::<u8>().map_err(|_| hint())).transpose()?;
        match (codec, level) {
            ("none", None) => Ok(Self::None),
            ("gzip", level) if (1..=12).contains(&level.unwrap_or(6)) => Ok(Self::Gzip(level.unwrap_or(6))),
            ("zstd", level) if (1..=19).contains(&level.unwrap_or(3)) => Ok(Self::Zstd(level.unwrap_or(3))),
            _ => Err(hint()),
        }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digested {
    /// Bytes.
    pub bytes: u64,
    /// SHA-256, in hexadecimal.
    pub sha256: String,
}

/// Writes through, and takes the digest on the way.
#[derive(Debug)]
pub struct Digesting<W> {
    inner: W,
    digest: Sha256,
    bytes: u64,
}

impl<W: Write> Digesting<W> {
    /// Of all that is written from now on.
    pub fn new(inner: W) -> Self {
        Self { inner, digest: Sha256::new(), bytes: 0 }
    }

    /// The writer, and the digest of what went into it.
    pub fn finish(self) -> (W, Digested) {
        let mut sha256 = String::with_capacity(64);
        for byte in self.digest.finalize() {
            let _ = write!(sha256, "{byte:02x}");
        }
        (self.inner, Digested { bytes: self.bytes, sha256 })
    }
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(part)?;
        self.digest.update(&part[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A writer that compresses.
pub enum Compressor<W: Write + Send + 'static> {
    /// As it is.
    None(W),
    /// Blocks on threads of our own: libdeflate compresses better and twice as fast as zlib, but only what it has whole.
    Gzip(Blocks<W>),
    /// Zstandard's own threads.
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write + Send + 'static> Compressor<W> {
    /// Compresses on `jobs` threads into `inner`.
    pub fn new(compression: Compression, jobs: usize, inner: W) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::None(inner),
            Compression::Gzip(level) => Self::Gzip(Blocks::start(i32::from(level), jobs, inner)?),
            Compression::Zstd(level) => {
                let mut encoder = zstd::stream::write::Encoder::new(inner, i32::from(level))?;
                encoder.include_checksum(true)?;
                encoder.multithread(u32::try_from(jobs).unwrap_or(1))?;
                Self::Zstd(encoder)
            }
        })
    }

    /// Compresses what is left, and returns what it was written to.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::None(inner) => Ok(inner),
            Self::Gzip(blocks) => blocks.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write + Send + 'static> Write for Compressor<W> {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(inner) => inner.write(part),
            Self::Gzip(blocks) => blocks.write(part),
            Self::Zstd(encoder) => encoder.write(part),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::None(inner) => inner.flush(),
            Self::Gzip(_) => Ok(()),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}

type Compressed = io::Result<Vec<u8>>;

/// A block, and where to send it compressed.
type Work = (Vec<u8>, SyncSender<Compressed>);

/// Cuts the stream into blocks, compresses them side by side, writes them in their order. At most twice as many blocks as threads
/// are in memory.
pub struct Blocks<W> {
    block: Vec<u8>,
    written: bool,
    work: Option<SyncSender<Work>>,
    order: Option<SyncSender<Receiver<Compressed>>>,
    workers: Vec<JoinHandle<()>>,
    writer: Option<JoinHandle<io::Result<W>>>,
}

impl<W: Write + Send + 'static> Blocks<W> {
    fn start(level: i32, jobs: usize, inner: W) -> io::Result<Self> {
        let jobs = jobs.max(1);
        let level = libdeflater::CompressionLvl::new(level).map_err(|_| io::Error::other("no such level of gzip"))?;
        let (work, queue) = sync_channel::<Work>(jobs);
        let (order, results) = sync_channel::<Receiver<Compressed>>(jobs);
        let queue = Arc::new(Mutex::new(queue));
        let workers = (0..jobs)
            .map(|number| {
                let queue = Arc::clone(&queue);
                thread::Builder::new().name(format!("gzip-{number}")).spawn(move || compress(level, &queue))
            })
            .collect::<io::Result<_>>()?;
        let writer = thread::Builder::new().name("gzip-write".to_owned()).spawn(move || write_all(&results, inner))?;
        Ok(Self {
            block: Vec::with_capacity(BLOCK),
            written: false,
            work: Some(work),
            order: Some(order),
            workers,
            writer: Some(writer),
        })
    }

    fn send(&mut self) -> io::Result<()> {
        let block = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK));
        self.written = true;
        let (result, wait) = sync_channel(1);
        let sent = self.order.as_ref().is_some_and(|order| order.send(wait).is_ok())
            && self.work.as_ref().is_some_and(|work| work.send((block, result)).is_ok());
        if sent { Ok(()) } else { Err(self.error()) }
    }

    /// Why the writer has ended.
    fn error(&mut self) -> io::Error {
        (self.work, self.order) = (None, None);
        match self.writer.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => error,
            _ => io::Error::other("the thread that writes ended early"),
        }
    }

    fn finish(mut self) -> io::Result<W> {
        // An empty file is no gzip file: at least one member.
        if !self.block.is_empty() || !self.written {
            self.send()?;
        }
        (self.work, self.order) = (None, None);
        for worker in self.workers.drain(..) {
            worker.join().map_err(|_| io::Error::other("a thread that compresses ended early"))?;
        }
        match self.writer.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            _ => Err(io::Error::other("the thread that writes ended early")),
        }
    }

    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        let taken = part.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&part[..taken]);
        if self.block.len() == BLOCK {
            self.send()?;
        }
        Ok(taken)
    }
}

/// Works until nobody sends any more.
fn compress(level: libdeflater::CompressionLvl, queue: &Mutex<Receiver<Work>>) {
    let mut compressor = libdeflater::Compressor::new(level);
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((block, result)) = next else { return };
        // Nobody waits for it any more where writing has failed.
        let _ = result.send(member(&mut compressor, &block));
    }
}

fn member(compressor: &mut libdeflater::Compressor, block: &[u8]) -> Compressed {
    let mut out = vec![0; compressor.gzip_compress_bound(block.len())];
    let length = compressor.gzip_compress(block, &mut out).map_err(io::Error::other)?;
    out.truncate(length);
    Ok(out)
}

fn write_all<W: Write>(results: &Receiver<Receiver<Compressed>>, mut inner: W) -> io::Result<W> {
    for result in results {
        let ended = |_| io::Error::other("a thread that compresses ended early");
        inner.write_all(&result.recv().map_err(ended)??)?;
    }
    Ok(inner)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1u32;
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8 & 0x3f
        })
        .take(length)
        .collect()
    }

    #[test]
    fn compressed_in_parallel_is_read_back_by_plain_readers() {
        for length in [0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 7] {
            let content = noise(length);
            for name in ["none", "gzip", "gzip:1", "zstd", "zstd:1"] {
                let compression: Compression = name.parse().unwrap();
                let mut compressor = Compressor::new(compression, 3, Digesting::new(Vec::new())).unwrap();
                compressor.write_all(&content).unwrap();
                let (written, digested) = compressor.finish().unwrap().finish();
                assert_eq!(digested.bytes, written.len() as u64);
                let mut back = Vec::new();
                match compression {
                    Compression::None => back.clone_from(&written),
                    Compression::Gzip(_) => {
                        flate2::read::MultiGzDecoder::new(written.as_slice()).read_to_end(&mut back).map(drop).unwrap();
                    }
                    Compression::Zstd(_) => back = zstd::stream::decode_all(written.as_slice()).unwrap(),
                }
                assert!(back == content, "{name} of {length} bytes");
            }
        }
    }

    #[test]
    fn failing_writer_is_an_error_and_no_hang() {
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, part: &[u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(part.len()).ok_or(io::ErrorKind::StorageFull)?;
                Ok(part.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let content = noise(20 * BLOCK);
        for name in ["none", "gzip", "zstd"] {
            let mut compressor = Compressor::new(name.parse().unwrap(), 2, Full(BLOCK)).unwrap();
            let failed = compressor.write_all(&content).and_then(|()| compressor.finish().map(drop));
            assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull, "{name}");
        }
    }

    #[test]
    fn compression_is_read_with_and_without_level() {
        assert_eq!("gzip".parse(), Ok(Compression::Gzip(6)));
        assert_eq!("zstd:1".parse(), Ok(Compression::Zstd(1)));
        for bad in ["", "gzip:0", "gzip:13", "zstd:20", "zstd:x", "none:1", "bzip2"] {
            assert!(bad.parse::<Compression>().is_err(), "{bad}");
        }
    }

    #[test]
    fn digest_is_that_of_what_was_written() {
        let mut digesting = Digesting::new(Vec::new());
        digesting.write_all(b"abc").unwrap();
        let (_, digested) = digesting.finish();
        assert_eq!(digested.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
