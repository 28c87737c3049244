//! The programs that containers' trust rests on, against the administrator's host list.

use super::{Examined, Finding};
use crate::hostlist::{self, Program};

const LIST: &str = "host-list";
const PROGRAM: &str = "program";

pub fn programs(examined: &Examined) -> Vec<Finding> {
    let Ok(config) = &examined.config else {
        return Vec::new(); // said already
    };
    let list = match &config.host_list {
        None => Err(Finding::unknown(
            LIST,
            "the configuration names no host list: nobody says which programs this host should have",
            "attestctl list create --hosts CLASS makes one; name it in [host_list]",
        )),
        Some(named) => hostlist::verified(named).map_err(|error| {
            let remedy = "attestctl list verify --hosts CLASS says more; sign a new one with a higher serial";
            Finding::refused(LIST, format!("{error:#}"), remedy)
        }),
    };
    let programs = hostlist::programs(config);
    let (list, head) = match list {
        Err(finding) => (None, finding),
        Ok(list) => {
            let (name, serial) = (list.name(), list.serial());
            let signer = list.signer().subject();
            let said = format!("`{name}` serial {serial}, signed by {signer}");
            (Some(list), Finding::ok(LIST, said))
        }
    };
    let judged = programs.into_iter().map(|Program { path, digest }| {
        let path = path.display();
        match (digest, &list) {
            (Err(error), _) => Finding::refused(PROGRAM, format!("{error:#}"), "install it"),
            (Ok(digest), None) => Finding::unknown(
                PROGRAM,
                format!("{path} {digest}"),
                "needs a host list that counts",
            ),
            (Ok(digest), Some(list)) if hostlist::is_listed(list, &digest) => {
                Finding::ok(PROGRAM, format!("{path} {digest}"))
            }
            (Ok(digest), Some(_)) => Finding::refused(
                PROGRAM,
                format!("{path} {digest} is not in the host list"),
                "install the listed one, or sign a list that has it",
            ),
        }
    });
    std::iter::once(head).chain(judged).collect()
}
