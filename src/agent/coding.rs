//! Content codings of answers: zstd (RFC 8878) and gzip (RFC 1952), as the caller prefers (RFC 9110, section
//! 12.5.3).

use axum::http::{HeaderMap, HeaderValue, header::ACCEPT_ENCODING};
use flate2::{Compression, write::GzEncoder};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use std::io::Write as _;

/// Answers from this length on are compressed.
const WORTH_COMPRESSING: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Gzip,
    Zstd,
}

impl Coding {
    const ALL: [Self; 2] = [Self::Gzip, Self::Zstd];

    const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// `None`: not worth an error, it goes out as it is.
    fn apply(self, body: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(body).ok()?;
                encoder.finish().ok()
            }
            Self::Zstd => Some(compress_to_vec(body, CompressionLevel::Fastest)),
        }
    }
}

/// The body in the coding that the caller likes best, and its name; `None`: as it is.
pub fn coded(body: &[u8], asked: &HeaderMap) -> Option<(HeaderValue, Vec<u8>)> {
    let coding = preferred(asked).filter(|_| body.len() >= WORTH_COMPRESSING)?;
    let name = HeaderValue::from_static(coding.name());
    coding.apply(body).map(|coded| (name, coded))
}

/// Of two that are liked as well, zstd.
fn preferred(asked: &HeaderMap) -> Option<Coding> {
    let values = asked.get_all(ACCEPT_ENCODING).iter();
    let named = values.filter_map(|value| value.to_str().ok());
    let named = named.flat_map(|value| value.split(',')).filter_map(|one| {
        let mut parts = one.split(';').map(str::trim);
        let name = parts.next()?;
        let coding = Coding::ALL
            .into_iter()
            .find(|c| name.eq_ignore_ascii_case(c.name()))?;
        Some((weight(parts)?, coding as u8, coding))
    });
    let liked = named.filter(|(weight, ..)| *weight > 0);
    liked
        .max_by_key(|(weight, rank, _)| (*weight, *rank))?
        .2
        .into()
}

/// In thousandths. `None`: no weight, so the coding is not asked for.
fn weight<'a>(mut parameters: impl Iterator<Item = &'a str>) -> Option<u16> {
    let Some(parameter) = parameters.next() else {
        return Some(1000);
    };
    let value = parameter.strip_prefix("q=")?;
    let (whole, digits) = value.split_once('.').unwrap_or((value, ""));
    if digits.len() > 3 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let thousandths: u16 = format!("{digits:0<3}").parse().ok()?;
    match whole {
        "0" => Some(thousandths),
        "1" if thousandths == 0 => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(asked: &str) -> Option<&'static str> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, asked.parse().unwrap());
        preferred(&headers).map(Coding::name)
    }

    #[test]
    fn the_callers_preference_counts() {
        for (asked, expected) in [
            ("gzip", Some("gzip")),
            ("zstd", Some("zstd")),
            ("gzip, zstd", Some("zstd")),
            ("GZIP, br", Some("gzip")),
            ("gzip;q=0.9, zstd;q=0.8", Some("gzip")),
            ("gzip;q=1.000, zstd ; q=0.999", Some("gzip")),
            ("gzip;q=0, zstd;q=0.000", None),
            ("br", None),
            ("identity", None),
            ("gzip;q=2", None),
            ("gzip;q=0.5555", None),
            ("gzip;level=9", None),
            ("", None),
        ] {
            assert_eq!(chosen(asked), expected, "{asked}");
        }
    }

    #[test]
    fn what_is_short_goes_as_it_is() {
        let mut asked = HeaderMap::new();
        asked.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        assert!(coded(&[7; WORTH_COMPRESSING - 1], &asked).is_none());
        assert!(coded(&[7; WORTH_COMPRESSING], &asked).is_some());
    }
}
