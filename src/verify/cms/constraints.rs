//! Name constraints on URIs (RFC 5280, section 4.2.1.10), which tenants' names are.
//!
//! webpki does not evaluate them: below a CA that has some, every certificate with a URI is refused. For
//! the CAs that a policy names they are taken out of what webpki sees and evaluated here; in CAs between
//! they stay what webpki makes of them, a refusal.

use super::CmsRefusal;
use der::{Decode, Encode, Header, SliceReader};
use rustls_pki_types::{Der, TrustAnchor};
use x509_cert::Certificate;
use x509_cert::ext::pkix::constraints::name::{GeneralSubtree, GeneralSubtrees};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{NameConstraints, SubjectAltName};

/// What a CA's certificate says about URIs, and the rest of its name constraints.
#[derive(Debug, Default)]
pub(super) struct Constraints {
    permitted: Option<Vec<String>>,
    excluded: Vec<String>,
    /// What webpki takes: the content of the SEQUENCE, in DER.
    others: Option<Vec<u8>>,
}

impl Constraints {
    /// Of a user CA's certificate (DER).
    pub(super) fn of(root: &[u8]) -> Result<Self, CmsRefusal> {
        let wrong = |why: String| CmsRefusal::Root(why);
        let root = Certificate::from_der(root).map_err(|e| wrong(e.to_string()))?;
        let found = root.tbs_certificate.get::<NameConstraints>();
        let Some((_, found)) = found.map_err(|e| wrong(format!("its name constraints: {e}")))?
        else {
            return Ok(Self::default());
        };
        let (permitted, others_permitted) = split(found.permitted_subtrees)?;
        let (excluded, others_excluded) = split(found.excluded_subtrees)?;
        let others = NameConstraints {
            permitted_subtrees: others_permitted,
            excluded_subtrees: others_excluded,
        };
        let some = others.permitted_subtrees.is_some() || others.excluded_subtrees.is_some();
        let others = some.then(|| content(&others)).transpose();
        Ok(Self {
            permitted,
            excluded: excluded.unwrap_or_default(),
            others: others.map_err(|e| wrong(e.to_string()))?,
        })
    }

    /// The CA as webpki is to see it.
    pub(super) fn without_uris<'a>(&'a self, anchor: TrustAnchor<'a>) -> TrustAnchor<'a> {
        TrustAnchor {
            name_constraints: self.others.as_deref().map(Der::from_slice),
            ..anchor
        }
    }

    /// Whether each URI of a certificate below the CA is one that it may speak for.
    pub(super) fn judge(&self, certificate: &Certificate) -> Result<(), String> {
        let names = match certificate.tbs_certificate.get::<SubjectAltName>() {
            Ok(names) => names.map(|(_, names)| names.0).unwrap_or_default(),
            Err(error) => return Err(format!("a subjectAltName is malformed: {error}")),
        };
        names.iter().try_for_each(|name| match name {
            GeneralName::UniformResourceIdentifier(uri) => self.judge_uri(uri.as_str()),
            _ => Ok(()),
        })
    }

    fn judge_uri(&self, uri: &str) -> Result<(), String> {
        if self.permitted.is_none() && self.excluded.is_empty() {
            return Ok(());
        }
        let violation = |why: &str| Err(format!("NameConstraintViolation: {uri}: {why}"));
        let Some(host) = host(uri) else {
            return violation("the CA has constraints on URIs, and it names no host");
        };
        if let Some(permitted) = &self.permitted
            && !permitted
                .iter()
                .any(|one| is_below(&host, one) == Some(true))
        {
            return violation("the CA may not speak for this host");
        }
        // what cannot be read excludes everything
        if self
            .excluded
            .iter()
            .any(|one| is_below(&host, one) != Some(false))
        {
            return violation("the CA is excluded from speaking for this host");
        }
        Ok(())
    }
}

/// Those on URIs, and the others; `None` where there are none.
fn split(
    subtrees: Option<GeneralSubtrees>,
) -> Result<(Option<Vec<String>>, Option<GeneralSubtrees>), CmsRefusal> {
    let (mut uris, mut others) = (Vec::new(), Vec::new());
    for subtree in subtrees.unwrap_or_default() {
        match subtree {
            GeneralSubtree {
                base: GeneralName::UniformResourceIdentifier(uri),
                minimum: 0,
                maximum: None,
            } => uris.push(uri.as_str().to_ascii_lowercase()),
            GeneralSubtree {
                base: GeneralName::UniformResourceIdentifier(_),
                ..
            } => return Err(CmsRefusal::Root("a name constraint with a distance".into())),
            other => others.push(other),
        }
    }
    Ok((
        (!uris.is_empty()).then_some(uris),
        (!others.is_empty()).then_some(others),
    ))
}

/// What stands in the SEQUENCE.
fn content(constraints: &NameConstraints) -> der::Result<Vec<u8>> {
    let whole = constraints.to_der()?;
    let mut reader = SliceReader::new(&whole)?;
    let header = Header::decode(&mut reader)?;
    let length = usize::try_from(header.length)?;
    Ok(whole
        .get(whole.len() - length..)
        .unwrap_or_default()
        .to_vec())
}

/// The host of a URI with an authority, in lower case; `None` for an address or none.
fn host(uri: &str) -> Option<String> {
    let (_, rest) = uri.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    let host = host.split_once(':').map_or(host, |(host, _)| host);
    let address = host.bytes().all(|b| b.is_ascii_digit() || b == b'.') || host.starts_with('[');
    (!address).then(|| host.to_ascii_lowercase())
}

/// `.example.com`: hosts below it; `example.com`: that host. `None`: it is neither.
fn is_below(host: &str, constraint: &str) -> Option<bool> {
    let name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b);
    let plain = constraint.strip_prefix('.').unwrap_or(constraint);
    if plain.is_empty() || plain.starts_with('.') || !plain.bytes().all(name) {
        return None;
    }
    Some(match constraint.starts_with('.') {
        true => host
            .strip_suffix(constraint)
            .is_some_and(|rest| !rest.is_empty()),
        false => host == constraint,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn constraints(permitted: &[&str], excluded: &[&str]) -> Constraints {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        Constraints {
            permitted: (!permitted.is_empty()).then(|| texts(permitted)),
            excluded: texts(excluded),
            others: None,
        }
    }

    /// RFC 5280, 4.2.1.10: ".example.com" is satisfied by both host.example.com and my.host.example.com,
    /// and not by example.com; without the period it is the host alone.
    #[test]
    fn accept_hosts_that_the_constraint_names() {
        for (permitted, excluded, uri) in [
            (&[][..], &[][..], "urn:x"),
            (&["demo.example"], &[], "spiffe://demo.example/tenant/a"),
            (&["demo.example"], &[], "https://user@DEMO.example:8443?x"),
            (&[".demo.example"], &[], "spiffe://a.demo.example/tenant/a"),
            (&[".demo.example"], &[], "spiffe://b.a.demo.example/x"),
            (&["other", "demo.example"], &[], "spiffe://demo.example/x"),
            (&[], &[".demo.example"], "spiffe://demo.example/x"),
            (&[".example"], &["bad.example"], "spiffe://demo.example/x"),
        ] {
            let judged = constraints(permitted, excluded).judge_uri(uri);
            assert_eq!(judged, Ok(()), "{permitted:?} {excluded:?}");
        }
    }

    #[test]
    fn refuse_other_hosts() {
        for (permitted, excluded, uri) in [
            (&["demo.example"][..], &[][..], "spiffe://a.demo.example/x"),
            (&[".demo.example"], &[], "spiffe://demo.example/x"),
            (&[".demo.example"], &[], "spiffe://evildemo.example/x"),
            (&["demo.example"], &[], "spiffe://demo.example.evil/x"),
            (&["demo.example"], &[], "spiffe://evil/demo.example"),
            (&["demo.example"], &[], "spiffe://demo.example@evil/x"),
            (&["demo.example"], &[], "urn:demo.example"),
            (&["demo.example"], &[], "spiffe:///tenant/x"),
            (&["127.0.0.1"], &[], "https://127.0.0.1/x"),
            (&["[::1]"], &[], "https://[::1]/x"),
            (&[".", ""], &[], "spiffe://demo.example/x"),
            (&["spiffe://demo.example"], &[], "spiffe://demo.example/x"),
            (&[], &["demo.example"], "spiffe://demo.example/x"),
            (&[], &[""], "spiffe://demo.example/x"),
            (&[".example"], &["demo.example"], "spiffe://demo.example/x"),
        ] {
            let judged = constraints(permitted, excluded).judge_uri(uri);
            assert!(judged.is_err(), "{permitted:?} {excluded:?} {uri}");
        }
    }
}
