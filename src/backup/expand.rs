//! Reading a set's file, whoever compressed it.

use std::io::{self, BufReader, Read};

/// The content of a file in this form (`sql`, `sql.gz`, `sql.zst`). A file that was cut off is an error, not an end.
pub fn expand(form: &str, file: impl Read + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
    let file = BufReader::with_capacity(1 << 18, file);
    let codec = form.rsplit_once('.').map(|(_, codec)| codec);
    Ok(match codec {
        // A gzip file is a series of members: ours has many.
        Some("gz") => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Some("zst") => Box::new(zstd::stream::read::Decoder::with_buffer(file)?),
        _ => Box::new(file),
    })
}
