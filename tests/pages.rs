//! What pages and manifests mention is there: links and sections, files, make targets, cargo's packages and
//! tests, configuration keys and metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};
use regex::Regex;
use serde_json::Value;
use testbed::fetch;
use testbed::manifests::parse;
use ws_clean_close_core::config::Config;
use ws_clean_close_core::counter::{Counter, ACTIVE, HANDSHAKE_MS};

/// The kinds of files that belong to the project if a page names one. Envoy's are `.cc` and `.proto`, Istio's `.go`.
const KINDS: &str = "md|rs|yaml|yml|json|toml|js|mjs|html|svg|png|wasm|sh|mod";

/// Names in camel case that are neither the filter's nor in the CRDs here: Istio's programs, annotations, mesh
/// configuration and AuthorizationPolicies, a function of Envoy's, a browser's API; Envoy Gateway's and Kuma's fields;
/// a library's option.
const FOREIGN: [&str; 21] = [
    "delayedCloseTimeout",
    "drainTimeout",
    "enableEnvoyPatchPolicy",
    "failOpen",
    "httpFilter",
    "mergeGateways",
    "mergeType",
    "networkFilter",
    "configDir",
    "drainDuration",
    "proxyMetadata",
    "requestPrincipals",
    "runtimeValues",
    "defaultConfig",
    "meshConfig",
    "nativeSidecar",
    "onEvent",
    "shouldRetry",
    "userVolume",
    "userVolumeMount",
    "wasClean",
];

/// What looks like a file of the project's and is none.
const FOREIGN_FILES: [&str; 3] =
    ["MQTT.js", "Node.js", "kubernetes/customresourcedefinitions.gen.yaml"];

/// The project's files, relative to its root.
static FILES: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    let mut files = BTreeSet::new();
    let mut folders = vec![fetch::root().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_file() {
                files.insert(relative(&path));
            } else if path.is_dir()
                && !["target", ".git", "node_modules"].map(Into::into).contains(&name)
            {
                folders.push(path);
            }
        }
    }
    files
});

fn relative(path: &Path) -> String {
    path.strip_prefix(fetch::root()).expect("inside").display().to_string()
}

fn read(file: &str) -> String {
    fs::read_to_string(fetch::root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a pattern")
}

/// What is looked at in a page, or in the comments of a manifest.
#[derive(Default)]
struct Page {
    links: Vec<String>,
    headings: Vec<String>,
    /// Inline code.
    code: Vec<String>,
    /// Lines of code blocks.
    lines: Vec<String>,
    /// All of it, with links left out.
    text: String,
}

impl Page {
    fn markdown(text: &str) -> Self {
        let mut page = Self::default();
        let (mut heading, mut block) = (None::<String>, false);
        for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.links.push(dest_url.to_string());
                }
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    page.headings.extend(heading.take());
                    page.text += "\n";
                }
                Event::Start(Tag::CodeBlock(kind)) => {
                    // YAML and output are looked at as text alone.
                    block = matches!(kind, CodeBlockKind::Indented);
                }
                Event::End(TagEnd::CodeBlock) => {
                    block = false;
                    page.text += "\n";
                }
                Event::Code(code) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&code);
                    }
                    page.text += &code;
                    page.code.push(code.to_string());
                }
                Event::Text(text) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                    if block {
                        page.lines.extend(text.lines().map(|line| line.trim().to_owned()));
                    }
                    page.text += &text;
                }
                Event::SoftBreak | Event::HardBreak => page.text += " ",
                Event::End(_) => page.text += "\n",
                _ => {}
            }
        }
        page
    }

    /// The comments of YAML, or of a Makefile: code in backticks, commands indented.
    fn comments(text: &str) -> Self {
        let mut page = Self::default();
        let lines = text.lines().filter_map(|line| line.trim_start().strip_prefix('#'));
        for line in lines {
            page.text += line;
            page.text += " ";
            page.lines.extend(line.starts_with("    ").then(|| line.trim().to_owned()));
        }
        let code = pattern("`([^`]+)`");
        page.code = code.captures_iter(&page.text).map(|found| found[1].to_owned()).collect();
        page
    }

    fn of(file: &str) -> Self {
        let text = read(file);
        if file.ends_with(".md") {
            Self::markdown(&text)
        } else {
            Self::comments(&text)
        }
    }

    fn commands(&self) -> impl Iterator<Item = &String> {
        self.code.iter().chain(&self.lines)
    }

    /// What is not there, of all that the page mentions. `folder` is the page's.
    fn wrong(&self, folder: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        self.wrong_links(folder, &mut wrong);
        self.wrong_sections(&mut wrong);
        self.wrong_files(folder, &mut wrong);
        self.wrong_commands(&mut wrong);
        self.wrong_keys(&mut wrong);
        self.wrong_functions(&mut wrong);
        wrong_metrics(&self.text, &mut wrong);
        wrong
    }

    fn wrong_links(&self, folder: &str, wrong: &mut Vec<String>) {
        for link in self.links.iter().filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = normal(&Path::new(folder).join(path));
            if !path.is_empty() && !exists(&target) {
                wrong.push(format!("link {link}: no {target}"));
            } else if !anchor.is_empty() {
                let headings = if path.is_empty() {
                    self.headings.clone()
                } else {
                    Self::of(&target).headings
                };
                if !headings.iter().any(|heading| slug(heading) == anchor) {
                    wrong.push(format!("link {link}: no such section among {headings:?}"));
                }
            }
        }
    }

    /// README.md, "Configure".
    fn wrong_sections(&self, wrong: &mut Vec<String>) {
        let reference = pattern(r#"([A-Za-z_-]+)(\.md)?, "([^"]+)""#);
        for found in reference.captures_iter(&self.text) {
            let name = format!("{}.md", &found[1]);
            let pages: Vec<_> = FILES.iter().filter(|file| is_or_ends_with(file, &name)).collect();
            let known =
                pages.iter().any(|page| Self::of(page).headings.contains(&found[3].to_owned()));
            if (found.get(2).is_some() || !pages.is_empty()) && !known {
                wrong.push(format!("{}: no such section", &found[0]));
            }
        }
    }

    fn wrong_files(&self, folder: &str, wrong: &mut Vec<String>) {
        let urls = pattern(r"[a-z]+://\S+");
        let text = urls.replace_all(&self.text, " ");
        // With a kind of the project's, or in one of its folders.
        let file = pattern(&format!(
            r"[\w./-]+\.(?:{KINDS})\b|\b(?:docs|src|crates|tests|envoyfilter|kustomize|examples|scripts|fuzz|benches|target)/[\w./-]*"
        ));
        for found in file.find_iter(&text) {
            let name = found.as_str().trim_end_matches(['.', '/']);
            // Part of a pattern such as `src/*.rs`, a path on somebody's own machine, Envoy's source,
            // Envoy's names.
            let rest = &text[found.end()..];
            let foreign = [".cc", ".h", ".proto"].iter().any(|kind| name.ends_with(kind));
            if rest.starts_with(['*', '{', '…', '<'])
                || name.starts_with(['/', '-'])
                || foreign
                || name.contains("envoy.extensions.")
                || name == "envoy.wasm"
                || FOREIGN_FILES.contains(&name)
            {
                continue;
            }
            let here = normal(&Path::new(folder).join(name));
            let anywhere = || FILES.iter().any(|file| is_or_ends_with(file, name));
            if !exists(&here) && !exists(name) && !anywhere() && !is_made(name) {
                wrong.push(format!("no file {name}"));
            }
        }
    }

    fn wrong_commands(&self, wrong: &mut Vec<String>) {
        let makefile = read("Makefile");
        let target = pattern("(?m)^([a-z-]+):");
        let targets: BTreeSet<_> =
            target.captures_iter(&makefile).map(|t| t[1].to_owned()).collect();
        let make = pattern(r"(?:^|[ (])make ([a-z][a-z-]*)");
        let option = pattern(r"--(package|bin|test|bench|path|example) ([\w./-]+)");
        for command in self.commands() {
            for found in make.captures_iter(command) {
                if !targets.contains(&found[1]) {
                    wrong.push(format!("no make target {} in {command:?}", &found[1]));
                }
            }
            if !command.contains("cargo ") {
                continue;
            }
            for found in option.captures_iter(command) {
                let name = &found[2];
                let manifest = |text: &str| {
                    FILES.iter().any(|f| is_or_ends_with(f, "Cargo.toml") && read(f).contains(text))
                };
                let known = match &found[1] {
                    "path" => exists(&format!("{name}/Cargo.toml")),
                    "test" => {
                        let file = format!("tests/{name}.rs");
                        let folder = format!("tests/{name}/main.rs");
                        FILES
                            .iter()
                            .any(|f| is_or_ends_with(f, &file) || is_or_ends_with(f, &folder))
                    }
                    "example" => exists(&format!("examples/{name}.rs")),
                    _ => manifest(&format!("name = \"{name}\"\n")),
                };
                if !known {
                    wrong.push(format!("no {} {name} in {command:?}", &found[1]));
                }
            }
        }
    }

    fn wrong_keys(&self, wrong: &mut Vec<String>) {
        let camel = pattern(r"\b[a-z]+(?:[A-Z][a-z0-9]+)+\b");
        let dotted = pattern(r"\b([A-Za-z]+)\.([A-Za-z]+)\b");
        let in_json = pattern(r#""([A-Za-z]+)"\s*:"#);
        for code in &self.code {
            let mut unknown = |name: &str| {
                if !KEYS.contains_key(name) && !OTHER_KEYS.contains(name) {
                    wrong.push(format!("no key {name} in {code:?}"));
                }
            };
            // `Class::function` is Envoy's.
            let code = &code.split("::").next().unwrap_or(code).to_owned();
            camel.find_iter(code).for_each(|found| unknown(found.as_str()));
            in_json.captures_iter(code).for_each(|found| unknown(&found[1]));
            for found in dotted.captures_iter(code) {
                let Some(inner) = KEYS.get(&found[1]).filter(|inner| !inner.is_empty()) else {
                    continue;
                };
                // drain.rs
                let file = KINDS.split('|').any(|kind| kind == &found[2]);
                if !file && !inner.contains(&found[2]) {
                    wrong.push(format!("no key {} in {code:?}", &found[0]));
                }
            }
        }
    }
}

impl Page {
    /// `Session::on_data`, if the type is the project's. Envoy's functions are in camel case.
    fn wrong_functions(&self, wrong: &mut Vec<String>) {
        let function = pattern(r"^([A-Z]\w+)::([a-z0-9_]+)$");
        for code in &self.code {
            let Some(found) = function.captures(code) else { continue };
            let (owner, name) = (&found[1], &found[2]);
            let own = pattern(&format!(r"\b(?:struct|enum|trait) {owner}\b"));
            if own.is_match(&SOURCE) && !pattern(&format!(r"\bfn {name}\b")).is_match(&SOURCE) {
                wrong.push(format!("no function {code}"));
            }
        }
    }
}

/// The filter's and its rules' source.
static SOURCE: LazyLock<String> = LazyLock::new(|| {
    let source = |file: &&String| {
        (file.starts_with("src/") || file.starts_with("crates/core/src/")) && file.ends_with(".rs")
    };
    FILES.iter().filter(source).map(|file| read(file)).collect()
});

/// Also in the text of dashboards.
fn wrong_metrics(text: &str, wrong: &mut Vec<String>) {
    let metric = pattern(r"\bwebsocket[._][a-z][a-z0-9_.]*");
    let file = pattern(&format!(r"\.(?:{KINDS})$"));
    for found in metric.find_iter(text) {
        let name = found.as_str();
        // `websocket.…`, or the beginning of several.
        let name = name.trim_end_matches('.');
        let partly = text[found.end()..].starts_with(['…', '*']) || name.ends_with('_');
        let name = flat(name);
        let histogram = |suffix: &&str| name == format!("{}{suffix}", flat(HANDSHAKE_MS));
        let known = METRICS.iter().copied().chain(FIELDS.iter().map(String::as_str)).any(|known| {
            let known = flat(known);
            if partly {
                known.starts_with(&name)
            } else {
                known == name
            }
        });
        let histogram = ["_bucket", "_sum", "_count"].iter().any(histogram);
        if !known && !histogram && !file.is_match(found.as_str()) {
            wrong.push(format!("no metric or field {}", found.as_str()));
        }
    }
}

fn flat(metric: &str) -> String {
    metric.replace('.', "_")
}

/// Without `.` and `..`.
fn normal(path: &Path) -> String {
    let mut parts = Vec::new();
    for part in path.to_str().expect("text").split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn exists(relative: &str) -> bool {
    FILES.contains(relative) || FILES.iter().any(|file| file.starts_with(&format!("{relative}/")))
}

fn is_or_ends_with(file: &str, name: &str) -> bool {
    file == name || file.strip_suffix(name).is_some_and(|before| before.ends_with('/'))
}

/// What the project itself makes: the module, and what `make image`, `make release` and the tests leave in `target`.
fn is_made(name: &str) -> bool {
    let made = ["layout", "probe/layout", "plugin.wasm", "ws_clean_close.wasm", "index.json"];
    if let Some(rest) = name.strip_prefix("target/image/") {
        let flat = FILES.iter().any(|file| is_or_ends_with(file, rest) && !rest.contains('/'));
        return flat || exists(rest) || made.contains(&rest);
    }
    let last = name.rsplit('/').next().unwrap_or(name);
    made.contains(&last)
        || name.starts_with("target/dist/ws-clean-close-")
        || name.starts_with("target/dist/ws-close-probe-")
        // What the release workflow adds.
        || name == "SHA256SUMS.sigstore.json"
        || [
            "target",
            "target/image",
            "target/dist",
            "target/sbom",
            "target/testbed",
            "target/testbed/run",
            "target/bench",
        ]
        .contains(&name)
}

/// As GitHub makes anchors.
fn slug(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// The filter's own list of its keys, from what it says to a wrong one; with the keys inside of those that are objects.
static KEYS: LazyLock<BTreeMap<String, BTreeSet<String>>> = LazyLock::new(|| {
    let quoted = pattern("`([A-Za-z]+)`");
    let expected = |json: &str| -> BTreeSet<String> {
        let error = Config::parse(json.as_bytes()).expect_err(json).to_string();
        let list = error.split_once("expected ").map(|(_, list)| list.to_owned());
        let list = list.filter(|_| error.contains("unknown field")).unwrap_or_default();
        quoted.captures_iter(&list).map(|found| found[1].to_owned()).collect()
    };
    let mut keys = BTreeMap::new();
    for key in expected(r#"{"no-such-key": 1}"#) {
        let inner = expected(&format!(r#"{{"attach": "http", "{key}": {{"no-such-key": 1}}}}"#));
        keys.insert(key, inner);
    }
    for inner in keys.clone().into_values().flatten() {
        keys.entry(inner).or_default();
    }
    keys
});

/// Every field of Istio's CRDs, and [`FOREIGN`].
static OTHER_KEYS: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    fn fields(schema: &Value, found: &mut BTreeSet<String>) {
        if let Some(properties) = schema["properties"].as_object() {
            found.extend(properties.keys().cloned());
        }
        match schema {
            Value::Object(map) => map.values().for_each(|inner| fields(inner, found)),
            Value::Array(values) => values.iter().for_each(|inner| fields(inner, found)),
            _ => {}
        }
    }
    let mut found: BTreeSet<_> = FOREIGN.map(str::to_owned).into();
    fields(&parse(&read("tests/istio/crds.yaml"))[0], &mut found);
    found
});

static METRICS: LazyLock<BTreeSet<&str>> = LazyLock::new(|| {
    Counter::ALL.iter().map(|counter| counter.name()).chain([ACTIVE, HANDSHAKE_MS]).collect()
});

/// Fields of the access log.
static FIELDS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let code = read("src/access_log.rs");
    let field = pattern(r#""(websocket_close_[a-z]+)""#);
    field.captures_iter(&code).map(|found| found[1].to_owned()).collect()
});

fn pages() -> impl Iterator<Item = &'static String> {
    let page = |file: &&String| [".md", ".yaml", ".yml"].iter().any(|kind| file.ends_with(kind));
    FILES.iter().filter(page)
}

#[test]
fn everything_mentioned_is_there() {
    let mut wrong = Vec::new();
    for file in pages() {
        let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
        wrong
            .extend(Page::of(file).wrong(folder).into_iter().map(|what| format!("{file}: {what}")));
    }
    let dashboards =
        FILES.iter().filter(|file| file.starts_with("examples/") && file.ends_with(".json"));
    for file in dashboards.chain(pages()) {
        let mut metrics = Vec::new();
        wrong_metrics(&read(file), &mut metrics);
        wrong.extend(metrics.into_iter().map(|what| format!("{file}: {what}")));
    }
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The test above can fail, in each of its parts.
#[test]
fn what_is_not_there_is_found() {
    let right = "[a](README.md#configure), README.md, \"Configure\", `make test`, `src/lib.rs`, closes.rs, \
        `cargo test --test closing`, `maxAge.claim`, `{\"drain\": {\"within\": \"1s\"}}`, `websocket.sent.drain`";
    assert_eq!(Page::markdown(right).wrong(""), Vec::<String>::new());
    for (text, says) in [
        ("[a](no-page.md)", "no no-page.md"),
        ("[a](README.md#no-such-section)", "no such section"),
        ("[a](#here)\n\n# There", "no such section"),
        ("see README.md, \"Configuration\"", "no such section"),
        ("`docs/nothing.md`", "no file docs/nothing.md"),
        ("in `letting_go.rs`", "no file letting_go.rs"),
        ("`scripts/nothing`", "no file scripts/nothing"),
        ("`make nothing`", "no make target nothing"),
        ("first\n\n    make nothing\n", "no make target nothing"),
        ("`cargo test --test nothing`", "no test nothing"),
        ("`cargo run --package nothing`", "no package nothing"),
        ("`closeTimeout`", "no key closeTimeout"),
        ("`{\"atach\": \"http\"}`", "no key atach"),
        ("`maxAge.within`", "no key maxAge.within"),
        ("`Session::no_such`", "no function Session::no_such"),
        ("websocket_opened", "websocket_opened"),
        ("`websocket.sent.unpaired`", "websocket.sent.unpaired"),
        ("`websocket_nothing_…`", "websocket_nothing"),
    ] {
        let wrong = Page::markdown(text).wrong("");
        assert!(wrong.iter().any(|w| w.contains(says)), "{text}: {wrong:?}");
    }
    let comment =
        "a: 1\n# See README.md, \"Configuration\", and `closeTimeout`.\n#\n#     make nothing\n";
    assert_eq!(Page::comments(comment).wrong("").len(), 3);
}

/// The rows of a table, as cells, that follows a heading of the README.
fn table(heading: &str) -> Vec<Vec<String>> {
    let readme = read("README.md");
    let (_, section) = readme.split_once(&format!("\n## {heading}\n")).expect("a section");
    let section = section.split("\n## ").next().unwrap_or(section);
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| row.split(" | ").map(str::to_owned).collect()).collect()
}

fn spans(cell: &str) -> Vec<String> {
    pattern("`([^`]+)`").captures_iter(cell).map(|found| found[1].to_owned()).collect()
}

/// The README's table has every key of the filter, and every key inside of those that are objects.
#[test]
fn every_key_has_its_row() {
    let rows = table("Configure");
    let inner: BTreeSet<_> = KEYS.values().flatten().cloned().collect();
    let outer: BTreeSet<_> = KEYS.keys().filter(|key| !inner.contains(*key)).cloned().collect();
    let named: BTreeSet<_> = rows.iter().flat_map(|row| spans(&row[0])).collect();
    assert_eq!(named, outer);
    for row in rows {
        let key = &spans(&row[0])[0];
        let object =
            spans(&row[2]).into_iter().find(|span| span.starts_with('{')).unwrap_or_default();
        let named = pattern(r#""([A-Za-z]+)":"#);
        let named: BTreeSet<_> =
            named.captures_iter(&object).map(|found| found[1].to_owned()).collect();
        assert_eq!(named, KEYS[key], "{key}");
    }
}

/// The README's table has every metric. Names are shortened there: `closed.clean`, `.server_only`.
#[test]
fn every_metric_has_its_row() {
    let mut named = BTreeSet::new();
    for row in table("Watch") {
        let (mut before, mut range) = (String::new(), None::<u16>);
        for part in row[0].split('`').map(str::trim) {
            match part {
                "…" => range = before.rsplit('.').next().and_then(|code| code.parse().ok()),
                "" | "|" | "," => {}
                name => {
                    let full = match name.strip_prefix('.') {
                        Some(last) => {
                            before.rsplit_once('.').map_or("", |(first, _)| first).to_owned()
                                + "."
                                + last
                        }
                        None => format!("websocket.{name}"),
                    };
                    let last = full.rsplit('.').next().and_then(|code| code.parse::<u16>().ok());
                    if let (Some(first), Some(last)) = (range.take(), last) {
                        let codes = (first..=last).map(|code| format!("websocket.code.{code}"));
                        named.extend(codes.filter(|code| METRICS.contains(&code[..])));
                    }
                    named.insert(full.clone());
                    before = full;
                }
            }
        }
    }
    let metrics: BTreeSet<_> = METRICS.iter().map(|metric| (*metric).to_owned()).collect();
    assert_eq!(named, metrics);
}

/// The lines of the log that the operator's page quotes, as far as they are quoted, are the filter's.
#[test]
fn quoted_logs_are_the_filters() {
    let sources = FILES.iter().filter(|file| file.starts_with("src/") && file.ends_with(".rs"));
    let sources: String = sources.map(|file| read(file).replace("\\\"", "\"")).collect();
    let page = read("docs/operate.md");
    let quoted = pattern("log: `([^`]+)`");
    let mut count = 0;
    for found in quoted.captures_iter(&page) {
        let line = found[1].trim_end_matches(['…', ' ', ':']);
        // Envoy's own.
        if line.starts_with('[') || !line.contains(' ') {
            continue;
        }
        // A value stands where the source has a placeholder.
        let parts = line.replace("\"http\"", "\0").replace("a network", "\0");
        for part in parts.split('\0') {
            assert!(sources.contains(part), "{line:?}: no {part:?} in the source");
        }
        count += 1;
    }
    assert!(count >= 4, "{count} lines of the log are quoted");
}

/// Pages have one place each in the tree, and nobody's machine in them.
#[test]
fn no_page_names_a_machine() {
    let own = pattern(r"(?:^|[\s`(])(?:/root/|/tmp/|/home/|/Users/)");
    for file in pages().map(PathBuf::from) {
        let text = read(file.to_str().expect("text"));
        assert!(!own.is_match(&text), "{}", file.display());
    }
}
