//! gzip (RFC 1952), zstd (RFC 8878) or nothing: told by the first bytes, since media types lie and
//! the diff-ID is that of the result anyway.

use ruzstd::decoding::{
    StreamingDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};
use std::io::{self, BufRead, BufReader, Read};

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// zstd:chunked begins and ends with frames that hold no data (RFC 8878, section 3.1.2).
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];

/// The uncompressed bytes of `compressed`.
pub fn decompress<'a>(compressed: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut input = BufReader::with_capacity(128 << 10, compressed);
    let start = input.fill_buf()?;
    if start.starts_with(&GZIP) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(input)));
    }
    if start.starts_with(&ZSTD) || start.get(1..4) == Some(&ZSTD_SKIPPABLE) {
        return Ok(Box::new(Frames {
            state: Some(Frame::Between(input)),
        }));
    }
    Ok(Box::new(input))
}

/// A sequence of zstd frames.
struct Frames<R: Read> {
    state: Option<Frame<R>>,
}

enum Frame<R: Read> {
    Between(BufReader<R>),
    Within(Box<StreamingDecoder<BufReader<R>, ruzstd::decoding::FrameDecoder>>),
}

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(state) = self.state.take() {
            match state {
                Frame::Between(mut input) => {
                    if input.fill_buf()?.is_empty() {
                        return Ok(0);
                    }
                    self.state = next(input)?;
                }
                Frame::Within(mut decoder) => match decoder.read(buffer)? {
                    0 if !buffer.is_empty() => {
                        self.state = Some(Frame::Between(decoder.into_inner()));
                    }
                    n => {
                        self.state = Some(Frame::Within(decoder));
                        return Ok(n);
                    }
                },
            }
        }
        Ok(0)
    }
}

fn next<R: Read>(mut input: BufReader<R>) -> io::Result<Option<Frame<R>>> {
    let mut magic = [0; 4];
    if input.fill_buf()?.get(1..4) == Some(&ZSTD_SKIPPABLE) {
        input.read_exact(&mut magic)?;
        let mut length = [0; 4];
        input.read_exact(&mut length)?;
        let length = u64::from(u32::from_le_bytes(length));
        if io::copy(&mut (&mut input).take(length), &mut io::sink())? != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        return Ok(Some(Frame::Between(input)));
    }
    match StreamingDecoder::new(input) {
        Ok(decoder) => Ok(Some(Frame::Within(Box::new(decoder)))),
        Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
            ..
        })) => Err(io::Error::other(
            "zstd: a skippable frame where none was seen",
        )),
        Err(error) => Err(io::Error::other(error.to_string())),
    }
}

#[cfg(test)]
#[path = "compression_tests.rs"]
mod tests;
