//! Device nodes and the rules of the device cgroup: is a host TPM within reach?

use super::defaults::usual_device;
use super::{LaunchProfile, ProfileError, utf8};
use oci_spec::runtime::{Linux, LinuxDeviceCgroup, LinuxDeviceType};
use serde::{Deserialize, Serialize};

/// `/dev/tpm0` (Linux `Documentation/admin-guide/devices.txt`: misc, char 10:224).
pub(super) const TPM0: (i64, i64) = (10, 224);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceNode {
    pub path: String,
    /// `c`, `b`, `u` or `p`.
    #[serde(rename = "type")]
    pub kind: String,
    pub major: i64,
    pub minor: i64,
    pub host_tpm: bool,
}

pub(super) fn nodes(linux: &Linux, tpms: &[(i64, i64)]) -> Result<Vec<DeviceNode>, ProfileError> {
    let nodes = linux.devices().as_deref().unwrap_or_default();
    nodes
        .iter()
        .map(|device| {
            let path = utf8(device.path())?;
            for number in [device.major(), device.minor()] {
                // Linux has 12 and 20 bits; JSON has 53.
                if u32::try_from(number).is_err() {
                    return Err(ProfileError::Encoding(format!(
                        "device {path} has the number {number}"
                    )));
                }
            }
            let is_char = matches!(device.typ(), LinuxDeviceType::C | LinuxDeviceType::U);
            Ok(DeviceNode {
                host_tpm: path.starts_with("/dev/tpm")
                    || is_char && tpms.contains(&(device.major(), device.minor())),
                path,
                kind: device.typ().as_str().to_owned(),
                major: device.major(),
                minor: device.minor(),
            })
        })
        .collect()
}

pub(super) fn rule_text(rule: &LinuxDeviceCgroup) -> String {
    let number = |n: Option<i64>| match n {
        None | Some(-1) => "*".to_owned(),
        Some(n) => n.to_string(),
    };
    format!(
        "{} {} {}:{} {}",
        if rule.allow() { "allow" } else { "deny" },
        rule.typ().unwrap_or_default().as_str(),
        number(rule.major()),
        number(rule.minor()),
        access(rule),
    )
}

/// What is left out means everything (runc, specconv).
fn access(rule: &LinuxDeviceCgroup) -> &str {
    match rule.access().as_deref() {
        None | Some("") => "rwm",
        Some(access) => access,
    }
}

/// These rules, in their order and from "nothing is allowed", let a container read or write the
/// character device (Linux `Documentation/admin-guide/cgroup-v1/devices.rst`).
pub(super) fn reachable(rules: &[LinuxDeviceCgroup], device: (i64, i64)) -> bool {
    let fits = |n: Option<i64>, number: i64| matches!(n, None | Some(-1)) || n == Some(number);
    let mut open = false;
    for rule in rules {
        let typ = rule.typ().unwrap_or_default();
        if !matches!(
            typ,
            LinuxDeviceType::A | LinuxDeviceType::C | LinuxDeviceType::U
        ) {
            continue;
        }
        // An entry of type `a` is about every device, whatever its numbers say.
        let fits = typ == LinuxDeviceType::A
            || fits(rule.major(), device.0) && fits(rule.minor(), device.1);
        let (read, write) = (access(rule).contains('r'), access(rule).contains('w'));
        match rule.allow() {
            true if fits && (read || write) => open = true,
            false if fits && read && write => open = false,
            _ => {}
        }
    }
    open
}

/// Rules, as texts, after the last one that denies everything, that let read or write a device which
/// is neither every container's nor among the profile's nodes.
pub(super) fn beyond(profile: &LaunchProfile) -> Vec<&str> {
    let rules = &profile.device_rules;
    let denies_all = |rule: &String| rule == "deny a *:* rwm";
    let start = rules.iter().rposition(denies_all).map_or(0, |at| at + 1);
    let allowed = rules.iter().skip(start).filter_map(|text| {
        let mut words = text.strip_prefix("allow ")?.split(' ');
        let (kind, numbers, access) = (words.next()?, words.next()?, words.next()?);
        let (major, minor) = numbers.split_once(':')?;
        let numbers = (major.parse().ok(), minor.parse().ok());
        access
            .contains(['r', 'w'])
            .then_some((text.as_str(), kind, numbers))
    });
    let has_node = |kind: &str, (major, minor): (Option<i64>, Option<i64>)| {
        profile
            .devices
            .iter()
            .any(|node| node.kind == kind && (Some(node.major), Some(node.minor)) == (major, minor))
    };
    allowed
        .filter(|(_, kind, numbers)| {
            let letter = kind.chars().next().unwrap_or('a');
            !usual_device(letter, numbers.0, numbers.1) && !has_node(kind, *numbers)
        })
        .map(|(text, ..)| text)
        .collect()
}
