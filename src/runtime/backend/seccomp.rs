//! runc's seccomp filter, compiled by us: libcontainer 0.7 does not apply it on exec, swaps mask and
//! datum of `SCMP_CMP_MASKED_EQ`, and has no ENOSYS answer for system calls newer than the profile.
//!
//! Compiled before the fork; loaded by the container's process itself right before execve.

use anyhow::{Context, Result, bail};
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator,
};
use std::{
    fs::File,
    io::{Read, Seek},
};

/// A classic BPF program and the flags it is loaded with (seccomp(2)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    pub program: Vec<u64>,
    pub flags: u64,
}

// linux/audit.h
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const AUDIT_ARCH_ARM: u32 = 0x4000_0028;
const AUDIT_ARCH_AARCH64: u32 = 0xc000_00b7;
/// System calls of the x32 ABI carry this bit (asm/unistd.h).
const X32_SYSCALL_BIT: u32 = 1 << 30;

#[cfg(target_arch = "x86_64")]
const NATIVE: (ScmpArch, u32) = (ScmpArch::X8664, AUDIT_ARCH_X86_64);
#[cfg(target_arch = "aarch64")]
const NATIVE: (ScmpArch, u32) = (ScmpArch::Aarch64, AUDIT_ARCH_AARCH64);

/// The architectures that the ENOSYS answer is written for; others need the external backend.
pub fn architecture(arch: Arch) -> Option<(ScmpArch, u32)> {
    Some(match arch {
        Arch::ScmpArchNative => NATIVE,
        Arch::ScmpArchX86 => (ScmpArch::X86, AUDIT_ARCH_I386),
        Arch::ScmpArchX86_64 => (ScmpArch::X8664, AUDIT_ARCH_X86_64),
        Arch::ScmpArchX32 => (ScmpArch::X32, AUDIT_ARCH_X86_64),
        Arch::ScmpArchArm => (ScmpArch::Arm, AUDIT_ARCH_ARM),
        Arch::ScmpArchAarch64 => (ScmpArch::Aarch64, AUDIT_ARCH_AARCH64),
        _ => return None,
    })
}

/// Whether a notifier is asked: then the listener's descriptor has to be handed on.
pub fn wants_notifier(seccomp: &LinuxSeccomp) -> bool {
    let notify = LinuxSeccompAction::ScmpActNotify;
    seccomp.default_action() == notify
        || seccomp
            .syscalls()
            .iter()
            .flatten()
            .any(|s| s.action() == notify)
}

/// The filter of a profile, as runc 1.1 builds it (libcontainer/seccomp).
pub fn compile(seccomp: &LinuxSeccomp) -> Result<Filter> {
    let default = action(seccomp.default_action(), seccomp.default_errno_ret())?;
    let archs = architectures(seccomp)?;
    let mut context = ScmpFilterContext::new(default).context("seccomp: default action")?;
    for (arch, _) in &archs {
        context.add_arch(*arch).context("seccomp: architecture")?;
    }
    for call in seccomp.syscalls().iter().flatten() {
        let action = action(call.action(), call.errno_ret())?;
        if action == default {
            continue; // libseccomp refuses a rule that says nothing
        }
        let comparisons: Vec<_> = call
            .args()
            .iter()
            .flatten()
            .map(comparison)
            .collect::<Result<_>>()?;
        let indexes: std::collections::BTreeSet<_> = comparisons.iter().map(|(i, _)| *i).collect();
        for name in call.names() {
            // a name that this libseccomp does not know cannot be called by it
            let Ok(number) = ScmpSyscall::from_name(name) else {
                continue;
            };
            let rule = || format!("seccomp: rule for {name}");
            if comparisons.is_empty() {
                context.add_rule(action, number).with_context(rule)?;
            } else if indexes.len() == comparisons.len() {
                let all: Vec<_> = comparisons.iter().map(|(_, c)| *c).collect();
                context
                    .add_rule_conditional(action, number, &all)
                    .with_context(rule)?;
            } else {
                // several comparisons of one argument are alternatives (runc, matchCall)
                for (_, one) in &comparisons {
                    context
                        .add_rule_conditional(action, number, &[*one])
                        .with_context(rule)?;
                }
            }
        }
    }
    let mut program = enosys_answer(seccomp, &archs);
    program.extend(export(&context)?);
    if u16::try_from(program.len()).is_err() {
        bail!(
            "seccomp: the filter has {} instructions, the kernel takes 65535",
            program.len()
        );
    }
    Ok(Filter {
        program,
        flags: flags(seccomp),
    })
}

fn architectures(seccomp: &LinuxSeccomp) -> Result<Vec<(ScmpArch, u32)>> {
    let known = |a: &Arch| {
        architecture(*a).with_context(|| format!("seccomp: architecture {a:?} is not supported"))
    };
    seccomp
        .architectures()
        .iter()
        .flatten()
        .map(known)
        .collect()
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction> {
    use LinuxSeccompAction as A;
    // runc's default answer is EPERM; a tracer's message has 16 bits
    let errno = errno.unwrap_or(libc::EPERM as u32);
    let small = u16::try_from(errno)
        .ok()
        .filter(|e| i32::from(*e) <= 4095 || action == A::ScmpActTrace);
    let small = small.with_context(|| format!("seccomp: errnoRet {errno} is out of range"))?;
    Ok(match action {
        A::ScmpActKill | A::ScmpActKillThread => ScmpAction::KillThread,
        A::ScmpActKillProcess => ScmpAction::KillProcess,
        A::ScmpActTrap => ScmpAction::Trap,
        A::ScmpActErrno => ScmpAction::Errno(small.into()),
        A::ScmpActTrace => ScmpAction::Trace(small),
        A::ScmpActLog => ScmpAction::Log,
        A::ScmpActAllow => ScmpAction::Allow,
        A::ScmpActNotify => ScmpAction::Notify,
    })
}

fn comparison(arg: &LinuxSeccompArg) -> Result<(u32, ScmpArgCompare)> {
    use LinuxSeccompOperator as O;
    let index = u32::try_from(arg.index())
        .ok()
        .filter(|i| *i < 6)
        .context("seccomp: argument index above 5")?;
    let (op, datum) = match arg.op() {
        O::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        O::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        O::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        O::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        O::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        O::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        // runtime-spec: `value` is the mask, `valueTwo` the datum
        O::ScmpCmpMaskedEq => (
            ScmpCompareOp::MaskedEqual(arg.value()),
            arg.value_two().unwrap_or(0),
        ),
    };
    Ok((index, ScmpArgCompare::new(index, op, datum)))
}

fn flags(seccomp: &LinuxSeccomp) -> u64 {
    use LinuxSeccompFilterFlag as F;
    let bit = |flag: &F| match flag {
        F::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
        F::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
        F::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        F::SeccompFilterFlagWaitKillableRecv => libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
    };
    seccomp
        .flags()
        .iter()
        .flatten()
        .fold(0, |all, flag| all | bit(flag))
}

fn export(context: &ScmpFilterContext) -> Result<Vec<u64>> {
    let memory = rustix::fs::memfd_create("seccomp", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(memory);
    context.export_bpf(&file).context("seccomp: export")?;
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    let (instructions, rest) = bytes.as_chunks::<8>();
    anyhow::ensure!(
        rest.is_empty(),
        "seccomp: the exported filter has a broken last instruction"
    );
    Ok(instructions
        .iter()
        .map(|i| u64::from_ne_bytes(*i))
        .collect())
}

/// One instruction (linux/filter.h, struct sock_filter).
const fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> u64 {
    let (c, k) = (code.to_ne_bytes(), k.to_ne_bytes());
    u64::from_ne_bytes([c[0], c[1], jt, jf, k[0], k[1], k[2], k[3]])
}
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const JUMP_BITS: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K
/// Offsets in struct seccomp_data.
const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;

/// What runc's patchbpf prepends: a system call newer than every one that the profile names gets
/// ENOSYS, so that libraries fall back, instead of the default errno.
fn enosys_answer(seccomp: &LinuxSeccomp, archs: &[(ScmpArch, u32)]) -> Vec<u64> {
    use LinuxSeccompAction as A;
    let lets_through = matches!(
        seccomp.default_action(),
        A::ScmpActAllow | A::ScmpActLog | A::ScmpActTrace
    );
    if lets_through || seccomp.default_errno_ret() == Some(libc::ENOSYS as u32) {
        return Vec::new();
    }
    let newest = |arch: ScmpArch| {
        let names = seccomp.syscalls().iter().flatten().flat_map(|s| s.names());
        let numbers = names
            .filter_map(|n| ScmpSyscall::from_name_by_arch(n, arch).ok())
            .map(i32::from);
        numbers.max().filter(|n| *n > 0).map(|n| n as u32)
    };
    let mut archs = archs.to_vec();
    if !archs.contains(&NATIVE) {
        archs.push(NATIVE);
    }
    // one group per audit architecture: its last system call, and its last of the x32 ABI
    let mut groups: Vec<(u32, u32, u32)> = Vec::new();
    for (arch, audit) in archs {
        let Some(last) = newest(arch) else { continue };
        let at = groups.iter().position(|g| g.0 == audit).unwrap_or_else(|| {
            groups.push((audit, u32::MAX, u32::MAX));
            groups.len() - 1
        });
        if let Some(group) = groups.get_mut(at) {
            if arch == ScmpArch::X32 {
                group.2 = last
            } else {
                group.1 = last
            }
        }
    }
    let mut program = Vec::new();
    for (audit, last, last_x32) in groups {
        program.extend([
            instruction(LOAD, 0, 0, OFFSET_ARCH),
            instruction(JUMP_EQUAL, 0, 5, audit), // another architecture: the next group
            instruction(LOAD, 0, 0, OFFSET_NR),
        ]);
        if audit == AUDIT_ARCH_X86_64 {
            program.extend([
                instruction(JUMP_BITS, 1, 0, X32_SYSCALL_BIT),
                instruction(JUMP_GREATER, 1, 2, last),
                instruction(JUMP_GREATER, 0, 1, last_x32),
            ]);
        } else {
            program.extend([
                instruction(JUMP, 0, 0, 1),
                instruction(JUMP, 0, 0, 0),
                instruction(JUMP_GREATER, 0, 1, last),
            ]);
        }
        program.push(instruction(
            RETURN,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
        ));
    }
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(text: &str) -> LinuxSeccomp {
        serde_json::from_str(text).unwrap()
    }

    /// Runs a program on (nr, arch, args) as the kernel would (only what libseccomp emits).
    fn run(program: &[u64], nr: u32, arch: u32, args: [u64; 6]) -> u32 {
        let mut data = [0u8; 64];
        data[0..4].copy_from_slice(&nr.to_ne_bytes());
        data[4..8].copy_from_slice(&arch.to_ne_bytes());
        for (i, a) in args.iter().enumerate() {
            data[16 + i * 8..24 + i * 8].copy_from_slice(&a.to_ne_bytes());
        }
        let (mut a, mut pc) = (0u32, 0usize);
        loop {
            let b = program[pc].to_ne_bytes();
            let (code, jt, jf) = (
                u16::from_ne_bytes([b[0], b[1]]),
                b[2] as usize,
                b[3] as usize,
            );
            let k = u32::from_ne_bytes([b[4], b[5], b[6], b[7]]);
            pc += 1;
            let mut jump = |yes: bool| pc += if yes { jt } else { jf };
            match code {
                LOAD => {
                    a = u32::from_ne_bytes(data[k as usize..k as usize + 4].try_into().unwrap())
                }
                JUMP => pc += k as usize,
                JUMP_EQUAL => jump(a == k),
                JUMP_GREATER => jump(a > k),
                0x35 => jump(a >= k),
                JUMP_BITS => jump(a & k != 0),
                0x54 => a &= k,
                RETURN => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    const ERRNO: u32 = libc::SECCOMP_RET_ERRNO;
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn masked_equality_has_the_mask_first() {
        // Docker's rule: clone only without CLONE_NEW* flags
        let filter = compile(&profile(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64"],"syscalls":[
               {"names":["clone"],"action":"SCMP_ACT_ALLOW","args":[
                 {"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#,
        ))
        .unwrap();
        let clone = |flags: u64| {
            run(
                &filter.program,
                libc::SYS_clone as u32,
                AUDIT_ARCH_X86_64,
                [flags, 0, 0, 0, 0, 0],
            )
        };
        assert_eq!(clone(libc::SIGCHLD as u64), ALLOW);
        assert_eq!(
            clone(libc::CLONE_NEWUSER as u64),
            ERRNO | libc::EPERM as u32
        );
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn newer_system_calls_do_not_exist() {
        let filter = compile(&profile(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"],
               "syscalls":[{"names":["read","openat2"],"action":"SCMP_ACT_ALLOW"}]}"#,
        ))
        .unwrap();
        let call = |nr: i64, arch| run(&filter.program, nr as u32, arch, [0; 6]);
        assert_eq!(call(libc::SYS_read, AUDIT_ARCH_X86_64), ALLOW);
        assert_eq!(
            call(libc::SYS_mount, AUDIT_ARCH_X86_64),
            ERRNO | libc::EPERM as u32
        );
        assert_eq!(
            call(libc::SYS_openat2 + 1, AUDIT_ARCH_X86_64),
            ERRNO | libc::ENOSYS as u32
        );
        assert_eq!(call(9999, AUDIT_ARCH_X86_64), ERRNO | libc::ENOSYS as u32);
        assert_eq!(call(9999, AUDIT_ARCH_I386), ERRNO | libc::ENOSYS as u32);
        assert_eq!(
            call(9999 | i64::from(X32_SYSCALL_BIT), AUDIT_ARCH_X86_64),
            ERRNO | libc::ENOSYS as u32
        );
    }

    #[test]
    fn several_comparisons_of_one_argument_are_alternatives() {
        let filter = compile(&profile(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[
                 {"index":0,"value":0,"op":"SCMP_CMP_EQ"},{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]}]}"#,
        ))
        .unwrap();
        let call = |v: u64| {
            run(
                &filter.program,
                libc::SYS_personality as u32,
                NATIVE.1,
                [v, 0, 0, 0, 0, 0],
            )
        };
        assert_eq!((call(0), call(8)), (ALLOW, ALLOW));
        assert_eq!(call(1), ERRNO | libc::EPERM as u32);
    }

    #[test]
    fn flags_and_errno_are_kept() {
        let filter = compile(&profile(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"flags":["SECCOMP_FILTER_FLAG_LOG"],
               "syscalls":[{"names":["read","no_such_call"],"action":"SCMP_ACT_ALLOW"},
                           {"names":["write"],"action":"SCMP_ACT_ERRNO","errnoRet":5}]}"#,
        ))
        .unwrap();
        assert_eq!(filter.flags, libc::SECCOMP_FILTER_FLAG_LOG);
        let call = |nr: i64| run(&filter.program, nr as u32, NATIVE.1, [0; 6]);
        assert_eq!(call(libc::SYS_write), ERRNO | 5);
        assert_eq!(call(libc::SYS_read), ALLOW);
        assert_eq!(call(libc::SYS_mount), ERRNO | libc::ENOSYS as u32);
    }

    #[test]
    fn refuse_what_we_cannot_build_as_runc_does() {
        for text in [
            r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_S390X"]}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mount"],"action":"SCMP_ACT_ERRNO","errnoRet":70000}]}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mount"],"action":"SCMP_ACT_ERRNO",
               "args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
        ] {
            assert!(compile(&profile(text)).is_err(), "{text}");
        }
    }
}
