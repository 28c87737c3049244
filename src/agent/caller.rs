//! Who asks, and how much of a container such a one may see.
//!
//! A local user is known by SO_PEERCRED, everybody else by a client certificate of the challengers' CA,
//! of which only the one URI counts (`spiffe://…`). Root and whoever is named with `--fleet` look after
//! the fleet: they see everything. A tenant sees its own containers. All others see that a container is
//! bound and quotes, and not what it is.

use crate::{listener::Bounded, tls::Tls};
use axum::{extract::connect_info::Connected, serve::IncomingStream};
use std::{collections::BTreeSet, fmt, str::FromStr};
use verify::wire::ChannelBinding;

/// One challenger; limits are per challenger.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Caller {
    /// A user of this machine.
    User(u32),
    /// The URI in a certificate of the challengers' CA.
    Certified(String),
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(uid) => write!(f, "uid:{uid}"),
            Self::Certified(uri) => f.write_str(uri),
        }
    }
}

/// As `--fleet` names one: `uid:<number>`, or a URI.
impl FromStr for Caller {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("uid:") {
            Some(number) => match number.parse() {
                Ok(uid) => Ok(Self::User(uid)),
                Err(_) => Err(format!("`{number}` is no user id")),
            },
            None if text.starts_with("spiffe://") => Ok(Self::Certified(text.to_owned())),
            None => Err("a challenger is uid:<number> or spiffe://…".to_owned()),
        }
    }
}

/// The other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    pub caller: Caller,
    /// What ties a challenge to this connection.
    pub binding: ChannelBinding,
}

impl Connected<IncomingStream<'_, Bounded>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Self {
        stream.remote_addr().clone()
    }
}

impl Connected<IncomingStream<'_, Tls>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Tls>) -> Self {
        stream.remote_addr().clone()
    }
}

/// How much of a container somebody may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View<'a> {
    Everything,
    /// Everything of this tenant's containers.
    Tenant(&'a str),
    Outside,
}

/// Who looks after the fleet.
#[derive(Debug, Clone)]
pub struct Access {
    fleet: BTreeSet<Caller>,
}

impl Access {
    /// Root always does: it could ask the host service itself.
    pub fn new(named: &[Caller]) -> Self {
        let mut fleet: BTreeSet<Caller> = named.iter().cloned().collect();
        fleet.insert(Caller::User(0));
        Self { fleet }
    }

    pub fn view<'a>(&self, caller: &'a Caller) -> View<'a> {
        match caller {
            _ if self.fleet.contains(caller) => View::Everything,
            Caller::Certified(uri) => View::Tenant(uri),
            Caller::User(_) => View::Outside,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sees_what() {
        let named = ["uid:7", "spiffe://a.example/verifier"];
        let named: Vec<Caller> = named.iter().map(|n| n.parse().unwrap()).collect();
        let access = Access::new(&named);
        let certified = |uri: &str| Caller::Certified(uri.to_owned());
        let tenant = "spiffe://a.example/tenant/t";
        for (caller, view) in [
            (Caller::User(0), View::Everything),
            (Caller::User(7), View::Everything),
            (Caller::User(8), View::Outside),
            (certified("spiffe://a.example/verifier"), View::Everything),
            (certified(tenant), View::Tenant(tenant)),
            // no certificate can pass as a local user
            (certified("uid:0"), View::Tenant("uid:0")),
        ] {
            assert_eq!(access.view(&caller), view, "{caller}");
        }
        for bad in ["uid:", "uid:x", "root", "http://a"] {
            assert!(bad.parse::<Caller>().is_err(), "{bad}");
        }
    }
}
