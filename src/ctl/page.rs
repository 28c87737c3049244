//! An appraisal as one HTML page to be kept or sent: no script, no style or picture from elsewhere.
//! Evidence is foreign text, so every text is escaped, and the page forbids itself everything active.

use crate::verdict::{self, shown};
use std::fmt::Write as _;
use verify::{
    appraise::{Appraisal, Verdict},
    check::{Finding, Outcome, Subject},
};

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.2rem .6rem;\
border-bottom:1px solid #ddd;overflow-wrap:anywhere}td:first-child{font-family:monospace;white-space:nowrap}\
.ok{color:#1a6b2b}.waived,.unknown{color:#8a5a00}.refused{color:#b00020;font-weight:bold}";

/// The whole page; `facts`: what was asked, line by line.
pub fn html(appraisal: &Appraisal, facts: &[(&str, String)]) -> String {
    let word = appraisal.verdict.word();
    let class = match appraisal.verdict {
        Verdict::Accepted(_) => "ok",
        Verdict::Refused => "refused",
        Verdict::Unknown => "unknown",
    };
    let title = format!("{}: {word}", escaped(appraisal.container.id.as_str()));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'\">\n<title>{title}</title><style>{STYLE}</style></head>\n\
         <body><h1>Container {} <span class=\"{class}\">{word}</span></h1>\n<table>\n",
        escaped(appraisal.container.id.as_str())
    );
    for (name, value) in facts {
        // Writing to a String cannot fail; so below.
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td>{}</td></tr>",
            escaped(name),
            escaped(value)
        );
    }
    page.push_str("</table>\n");
    for subject in Subject::ALL {
        let (title, facts) = verdict::about(appraisal, subject);
        let _ = writeln!(page, "<h2>{}</h2>\n<ul>", escaped(&title));
        for fact in facts {
            let _ = writeln!(page, "<li>{}</li>", escaped(&fact));
        }
        page.push_str(
            "</ul>\n<table><tr><th>check</th><th>outcome</th><th>what was looked at</th></tr>\n",
        );
        let of_it = appraisal.findings.iter().filter(|f| f.subject == subject);
        of_it.for_each(|finding| row(&mut page, finding));
        page.push_str("</table>\n");
    }
    page.push_str("</body></html>\n");
    page
}

fn row(page: &mut String, finding: &Finding) {
    let word = finding.outcome.word();
    let by = match &finding.outcome {
        Outcome::Waived { by, .. } => format!(" ({by})"),
        _ => String::new(),
    };
    let _ = writeln!(
        page,
        "<tr><td>{}</td><td class=\"{word}\">{word}{by}</td><td>{}</td></tr>",
        finding.check.name(),
        escaped(&finding.detail)
    );
}

/// Text as HTML shows it (HTML, section 13.3), without characters that move the reader's eye.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in shown(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_text() {
        assert_eq!(
            escaped("<script a='1' b=\"2\">&\u{202e}"),
            "&lt;script a=&#39;1&#39; b=&quot;2&quot;&gt;&amp;\u{fffd}"
        );
    }
}
