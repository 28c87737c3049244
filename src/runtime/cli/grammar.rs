//! The grammar of runc's flags: Go's `flag` package as urfave/cli v1 uses it.
//!
//! One dash or two, `-flag value` or `-flag=value`; a switch takes a value only with `=`. Flags are
//! never bundled. `--` ends them.

use super::{Result, UsageError};
use std::{str::FromStr, time::Duration};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    Nothing,
    /// The last one counts.
    Value,
    /// All count.
    Values,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag {
    /// The first name is the one that the value is asked by.
    pub names: &'static [&'static str],
    pub takes: Takes,
}

impl Flag {
    pub fn describe(&self) -> String {
        let value = if self.takes == Takes::Nothing {
            ""
        } else {
            " value"
        };
        let name = |n: &&str| format!("{}{n}{value}", if n.len() > 1 { "--" } else { "-" });
        self.names.iter().map(name).collect::<Vec<_>>().join(", ")
    }
}

/// Where flags may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Before, between and after the arguments.
    Anywhere,
    /// The first argument ends them: what follows belongs to another program.
    BeforeArguments,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    values: Vec<(&'static str, String)>,
    pub arguments: Vec<String>,
}

pub fn parse(flags: &[&[Flag]], order: Order, args: &[String]) -> Result<Parsed> {
    let mut parsed = Parsed::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let name = match arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) {
            Some("") if arg == "--" => {
                parsed.arguments.extend(args.cloned());
                break;
            }
            // a lone dash is an argument
            None | Some("") => {
                parsed.arguments.push(arg.clone());
                if order == Order::BeforeArguments {
                    parsed.arguments.extend(args.cloned());
                    break;
                }
                continue;
            }
            Some(name) => name,
        };
        let (name, attached) = name
            .split_once('=')
            .map_or((name, None), |(n, v)| (n, Some(v)));
        let flag = flags
            .iter()
            .flat_map(|f| f.iter())
            .find(|f| f.names.contains(&name));
        let flag = flag.ok_or_else(|| UsageError::Flag(name.to_owned()))?;
        let value = match (flag.takes, attached) {
            (_, Some(value)) => value.to_owned(),
            (Takes::Nothing, None) => "true".to_owned(),
            (_, None) => args
                .next()
                .ok_or_else(|| UsageError::NoValue(name.to_owned()))?
                .clone(),
        };
        parsed.values.push((flag.names[0], value));
    }
    Ok(parsed)
}

impl Parsed {
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.values
            .iter()
            .filter(move |(n, _)| *n == name)
            .map(|(_, v)| v.as_str())
    }

    pub fn one(&self, name: &str) -> Option<&str> {
        self.all(name).last()
    }

    /// A switch: absent, or one of Go's spellings of a boolean (strconv.ParseBool).
    pub fn is_set(&self, name: &str) -> Result<bool> {
        match self.one(name) {
            None => Ok(false),
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
            Some(other) => Err(super::bad(name, other, "true or false")),
        }
    }

    pub fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        let parse = |text: &str| {
            text.parse()
                .map_err(|_| super::bad(name, text, "a number in range"))
        };
        self.one(name).map(parse).transpose()
    }

    /// Bytes, with the binary suffixes that runc takes for memory (go-units, RAMInBytes).
    pub fn bytes(&self, name: &str) -> Result<Option<i64>> {
        let Some(text) = self.one(name) else {
            return Ok(None);
        };
        let wrong = || super::bad(name, text, "a size such as 512m, or -1");
        let lower = text.to_ascii_lowercase();
        let digits = lower.trim_end_matches("ib").trim_end_matches('b');
        let (digits, shift) = match digits.char_indices().last() {
            Some((i, unit)) if unit.is_ascii_alphabetic() => {
                let shift = match unit {
                    'k' => 10,
                    'm' => 20,
                    'g' => 30,
                    't' => 40,
                    'p' => 50,
                    _ => return Err(wrong()),
                };
                (&digits[..i], shift)
            }
            _ => (digits, 0),
        };
        let digits = digits.trim_end();
        if digits == "-1" && shift == 0 {
            return Ok(Some(-1));
        }
        let is_part = |c: char| c.is_ascii_digit() || c == '.';
        if let (true, Some((whole, part))) = (digits.chars().all(is_part), digits.split_once('.')) {
            let number: f64 = format!("{whole}.{part}").parse().map_err(|_| wrong())?;
            return Ok(Some((number * (1u64 << shift) as f64) as i64)); // as Go converts it
        }
        let number: i64 = digits.parse().map_err(|_| wrong())?;
        let positive = Some(number).filter(|n| *n >= 0);
        let bytes = positive.and_then(|n| n.checked_mul(1 << shift));
        bytes.map(Some).ok_or_else(wrong)
    }
}

/// A Go duration of one or more parts such as `5s`, `1m30s`, `250ms` (time.ParseDuration).
pub fn duration(flag: &str, text: &str) -> Result<Duration> {
    let wrong = || super::bad(flag, text, "a duration such as 5s");
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        total += match unit {
            "h" => Duration::from_secs(number.checked_mul(3600).ok_or_else(wrong)?),
            "m" => Duration::from_secs(number.checked_mul(60).ok_or_else(wrong)?),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            "us" => Duration::from_micros(number),
            "ns" => Duration::from_nanos(number),
            _ => return Err(wrong()),
        };
        rest = tail;
    }
    if total.is_zero() {
        Err(wrong())
    } else {
        Ok(total)
    }
}
