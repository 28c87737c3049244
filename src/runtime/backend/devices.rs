//! Which devices a container may open: the configuration's rules and runc's own, in force on cgroup v1
//! beside what libcontainer writes, on cgroup v2 by a filter program of ours.

use crate::sys;
use anyhow::{Context, Result};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, Spec};
use std::{
    fs::{self, File},
    os::fd::AsFd,
    path::Path,
};

// linux/bpf.h, enum bpf_devcg_access and types
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const BLOCK: u32 = 1;
const CHARACTER: u32 = 2;

/// `None` is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<u32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

/// In order; of those that fit a request the last one decides, and none means no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// The configuration's, then what every container may use (runc, specconv.AllowedDevices).
    pub fn of(spec: &Spec) -> Result<Self> {
        let resources = spec.linux().as_ref().and_then(|l| l.resources().as_ref());
        let wanted = resources.and_then(|r| r.devices().as_ref());
        let mut rules: Vec<Rule> = wanted
            .into_iter()
            .flatten()
            .map(rule)
            .collect::<Result<_>>()?;
        let always = |kind, major, minor, access| Rule {
            allow: true,
            kind: Some(kind),
            major,
            minor,
            access,
        };
        rules.extend([
            always(CHARACTER, None, None, MKNOD),
            always(BLOCK, None, None, MKNOD),
        ]);
        for (major, minor) in [
            (1, Some(3)),    // null
            (1, Some(5)),    // zero
            (1, Some(7)),    // full
            (1, Some(8)),    // random
            (1, Some(9)),    // urandom
            (5, Some(0)),    // tty
            (5, Some(2)),    // ptmx
            (136, None),     // pts
            (10, Some(200)), // net/tun
        ] {
            rules.push(always(CHARACTER, Some(major), minor, MKNOD | READ | WRITE));
        }
        Ok(Self(rules))
    }

    fn allow(&self, kind: u32, major: u32, minor: u32, access: u32) -> bool {
        let fits = |r: &&Rule| {
            r.kind.is_none_or(|k| k == kind)
                && r.major.is_none_or(|m| m == major)
                && r.minor.is_none_or(|m| m == minor)
                // an allowance must cover the whole request, a denial any part of it
                && if r.allow { access & !r.access == 0 } else { access & r.access != 0 }
        };
        self.0.iter().rev().find(fits).is_some_and(|r| r.allow)
    }

    /// On cgroup v1 libcontainer writes the configuration's rules and its own, which allow
    /// /dev/console too.
    pub fn correct_v1(&self, dir: &Path) -> Result<()> {
        let denied: String = [(MKNOD, 'm'), (READ, 'r'), (WRITE, 'w')]
            .iter()
            .filter(|(access, _)| !self.allow(CHARACTER, 5, 1, *access))
            .map(|(_, letter)| *letter)
            .collect();
        if denied.is_empty() {
            return Ok(());
        }
        let path = dir.join("devices.deny");
        fs::write(&path, format!("c 5:1 {denied}"))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// On cgroup v2: from now on the kernel asks this program at each mknod and open of a device by
    /// any process in or below `dir`. It goes with the directory.
    pub fn enforce_v2(&self, dir: &Path) -> Result<()> {
        let doing = || format!("cannot put the device rules in force for {}", dir.display());
        let cgroup = File::open(dir).with_context(doing)?;
        sys::attach_device_filter(cgroup.as_fd(), &self.program()).with_context(doing)
    }

    /// The rules as a program of type BPF_PROG_TYPE_CGROUP_DEVICE: 1 allows. Registers: r2 type,
    /// r3 access, r4 major, r5 minor.
    fn program(&self) -> Vec<u64> {
        const CONTEXT: u8 = 1;
        let mut program = vec![
            instruction(LOAD, 2, CONTEXT, 0, 0), // access_type: access << 16 | type
            instruction(MOVE, 3, 2, 0, 0),
            instruction(AND, 2, 0, 0, 0xffff),
            instruction(SHIFT_RIGHT, 3, 0, 0, 16),
            instruction(LOAD, 4, CONTEXT, 4, 0), // major
            instruction(LOAD, 5, CONTEXT, 8, 0), // minor
        ];
        for rule in self.0.iter().rev() {
            let mut tests = Vec::new();
            let is =
                |register, value: Option<u32>| value.map(|v| (JUMP_NOT_EQUAL, register, v as i32));
            tests.extend(is(2, rule.kind));
            tests.extend(is(4, rule.major));
            tests.extend(is(5, rule.minor));
            let (mask, jump) = if rule.allow {
                (!rule.access & (MKNOD | READ | WRITE), JUMP_NOT_EQUAL)
            } else {
                (rule.access, JUMP_EQUAL)
            };
            // behind the tests come five instructions; each test jumps over what is left of them
            let mut left = tests.len() as i16 + 5;
            for (code, register, value) in tests {
                left -= 1;
                program.push(instruction(code, register, 0, left, value));
            }
            program.extend([
                instruction(MOVE, 0, 3, 0, 0),
                instruction(AND, 0, 0, 0, mask as i32),
                instruction(jump, 0, 0, 2, 0),
                instruction(SET, 0, 0, 0, i32::from(rule.allow)),
                instruction(EXIT, 0, 0, 0, 0),
            ]);
        }
        program.extend([instruction(SET, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
        program
    }
}

/// On v1 the rules begin with nothing allowed; libcontainer would begin with what its parent may.
pub fn closed(spec: &mut Spec) -> Result<()> {
    let mut linux = spec.linux().clone().context("linux must be specified")?;
    let mut resources = linux.resources().clone().unwrap_or_default();
    let nothing = LinuxDeviceCgroupBuilder::default()
        .allow(false)
        .access("rwm")
        .build()?;
    let mut rules = resources.devices().clone().unwrap_or_default();
    for rule in &mut rules {
        // libcontainer writes the letters as they are
        let access = rule.access().clone();
        rule.set_access(access.map(|a| a.chars().filter(|c| "rwm".contains(*c)).collect()));
    }
    resources.set_devices(Some([vec![nothing], rules].concat()));
    linux.set_resources(Some(resources));
    spec.set_linux(Some(linux));
    Ok(())
}

fn rule(rule: &LinuxDeviceCgroup) -> Result<Rule> {
    let number = |n: Option<i64>| -> Result<Option<u32>> {
        n.filter(|n| *n >= 0) // -1 is any, as an absent one
            .map(|n| u32::try_from(n).context("a device number in the device rules is too large"))
            .transpose()
    };
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(BLOCK),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHARACTER),
        Some(LinuxDeviceType::P) => anyhow::bail!("a device rule cannot name a fifo"),
    };
    let letters = rule.access().as_deref().unwrap_or_default();
    // other letters mean nothing, as to runc (devices.Permissions)
    let access = letters.chars().fold(0, |all, letter| match letter {
        'm' => all | MKNOD,
        'r' => all | READ,
        'w' => all | WRITE,
        _ => all,
    });
    Ok(Rule {
        allow: rule.allow(),
        kind,
        major: number(rule.major())?,
        minor: number(rule.minor())?,
        access,
    })
}

// bpf.h and bpf_common.h
const LOAD: u8 = 0x61; // BPF_LDX | BPF_W | BPF_MEM
const MOVE: u8 = 0xbf; // BPF_ALU64 | BPF_MOV | BPF_X
const SET: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const AND: u8 = 0x57; // BPF_ALU64 | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x77; // BPF_ALU64 | BPF_RSH | BPF_K
const JUMP_EQUAL: u8 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_NOT_EQUAL: u8 = 0x55; // BPF_JMP | BPF_JNE | BPF_K
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

/// struct bpf_insn (linux/bpf.h); `target` is the low half of the register byte on little endian.
fn instruction(code: u8, target: u8, source: u8, offset: i16, value: i32) -> u64 {
    let registers = if cfg!(target_endian = "little") {
        source << 4 | target
    } else {
        target << 4 | source
    };
    let (o, v) = (offset.to_ne_bytes(), value.to_ne_bytes());
    u64::from_ne_bytes([code, registers, o[0], o[1], v[0], v[1], v[2], v[3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(devices: &str) -> Rules {
        let text = format!(
            r#"{{"ociVersion":"1.0.2","root":{{"path":"r"}},"linux":{{"resources":{{"devices":{devices}}}}}}}"#
        );
        Rules::of(&serde_json::from_str(&text).unwrap()).unwrap()
    }

    /// Runs a program as the kernel would (only what is emitted here).
    fn run(program: &[u64], kind: u32, major: u32, minor: u32, access: u32) -> bool {
        let mut r = [0u64; 6];
        let mut pc = 0;
        loop {
            let b = program[pc].to_ne_bytes();
            let (to, from) = ((b[1] & 15) as usize, (b[1] >> 4) as usize);
            let offset = i16::from_ne_bytes([b[2], b[3]]);
            let value = i64::from(i32::from_ne_bytes([b[4], b[5], b[6], b[7]])) as u64;
            pc += 1;
            match b[0] {
                LOAD => r[to] = [access << 16 | kind, major, minor][offset as usize / 4].into(),
                MOVE => r[to] = r[from],
                SET => r[to] = value,
                AND => r[to] &= value,
                SHIFT_RIGHT => r[to] >>= value,
                JUMP_EQUAL if r[to] == value => pc += offset as usize,
                JUMP_NOT_EQUAL if r[to] != value => pc += offset as usize,
                JUMP_EQUAL | JUMP_NOT_EQUAL => {}
                EXIT => return r[0] == 1,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn the_program_decides_as_the_rules() {
        for devices in [
            "[]",
            r#"[{"allow":false,"access":"rwm"}]"#,
            r#"[{"allow":true,"access":"rwm"}]"#,
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":5,"minor":1,"access":"rw"},
                {"allow":true,"type":"b","major":8,"access":"r"},{"allow":false,"type":"b","major":8,"minor":1,"access":"r"}]"#,
            r#"[{"allow":true,"access":"rwm"},{"allow":false,"type":"c","major":10,"minor":229,"access":"w"}]"#,
        ] {
            let rules = rules(devices);
            let program = rules.program();
            for kind in [BLOCK, CHARACTER] {
                for (major, minor) in [
                    (1, 3),
                    (1, 11),
                    (5, 0),
                    (5, 1),
                    (8, 0),
                    (8, 1),
                    (10, 229),
                    (136, 77),
                ] {
                    for access in 1..8 {
                        assert_eq!(
                            run(&program, kind, major, minor, access),
                            rules.allow(kind, major, minor, access),
                            "{devices} {kind} {major}:{minor} {access}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn refuse_what_no_rule_allows() {
        let none = rules("[]");
        assert!(none.allow(CHARACTER, 1, 3, READ | WRITE)); // null
        assert!(none.allow(BLOCK, 8, 0, MKNOD));
        assert!(!none.allow(BLOCK, 8, 0, READ));
        assert!(!none.allow(CHARACTER, 5, 1, READ)); // console
        let last = rules(
            r#"[{"allow":true,"access":"rwm"},{"allow":false,"type":"c","major":10,"minor":229,"access":"w"}]"#,
        );
        assert!(last.allow(CHARACTER, 10, 229, READ));
        assert!(!last.allow(CHARACTER, 10, 229, READ | WRITE));
        assert!(last.allow(CHARACTER, 10, 200, READ | WRITE));
    }

    #[test]
    fn the_kernel_takes_the_program() {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let point = mounts
            .lines()
            .find(|l| l.split(' ').nth(2) == Some("cgroup2"))
            .and_then(|l| l.split(' ').nth(1));
        let dir = Path::new(point.unwrap_or("/nonexistent"))
            .join(format!("attestrun-unit-{}", std::process::id()));
        if let Err(error) = fs::create_dir(&dir) {
            eprintln!("skipped: no cgroup of our own can be made: {error}");
            return;
        }
        let done = rules(r#"[{"allow":false,"access":"rwm"}]"#).enforce_v2(&dir);
        fs::remove_dir(&dir).unwrap();
        done.unwrap();
    }
}
