use super::value::parse_duration;
use super::*;

fn http(json: &str) -> HttpConfig {
    match Config::parse(json.as_bytes()) {
        Ok(Config::Http(config)) => *config,
        other => panic!("{json}: {other:?}"),
    }
}

fn error(json: &str) -> String {
    match Config::parse(json.as_bytes()) {
        Err(error) => error.to_string(),
        Ok(config) => panic!("{json} was taken: {config:?}"),
    }
}

#[test]
fn defaults() {
    assert_eq!(http(r#"{"attach": "http"}"#), HttpConfig::default());
    assert_eq!(Config::parse(br#"{"attach":"network"}"#), Ok(Config::Network));
}

#[test]
fn every_key() {
    let config = http(
        r#"{"attach": "http", "enforce": false, "closeHandshakeTimeout": "0.5s",
            "tcpCloseTimeout": "0s", "answerClientClose": false,
            "abnormalClose": {"code": 1012, "reason": "weiß"},
            "missingCloseIsFailure": false,
            "maxAge": {"after": "1h", "jitter": 0, "claim": "exp", "code": 4000, "reason": "old",
                       "endSilentAfter": "0s"},
            "drain": {"within": "90s", "endSilentAfter": "5s"}}"#,
    );
    let close = |code, reason| Close::new(CloseCode::new(code).unwrap(), reason).unwrap();
    assert_eq!(
        config,
        HttpConfig {
            enforce: false,
            close_handshake_timeout: Some(Duration::from_millis(500)),
            tcp_close_timeout: None,
            answer_client_close: false,
            abnormal_close: Some(close(1012, "weiß")),
            missing_close_is_failure: false,
            max_age: Some(MaxAge {
                after: Some(Duration::from_secs(3600)),
                jitter: 0.0,
                claim: true,
                close: close(4000, "old"),
                end_silent_after: Some(Duration::ZERO),
            }),
            drain: Some(Drain {
                within: Duration::from_secs(90),
                close: close(1001, ""),
                end_silent_after: Some(Duration::from_secs(5)),
            }),
        }
    );
}

#[test]
fn a_configuration_in_words() {
    assert_eq!(
        HttpConfig::default().to_string(),
        "enforce true, closeHandshakeTimeout 10s, tcpCloseTimeout 1s, answerClientClose true"
    );
    let config = http(
        r#"{"attach": "http", "tcpCloseTimeout": "0s", "abnormalClose": {"code": 1011},
            "missingCloseIsFailure": false,
            "maxAge": {"after": "1h", "reason": "old", "endSilentAfter": "10s"},
            "drain": {"code": 1012}}"#,
    );
    assert_eq!(
        config.to_string(),
        "enforce true, closeHandshakeTimeout 10s, tcpCloseTimeout never, answerClientClose true, \
         abnormalClose code 1011, missingCloseIsFailure false, \
         maxAge after 3600s, jitter 0.1, code 1001 \"old\", endSilentAfter 10s, \
         drain within 30s, code 1012"
    );
    let config = http(
        r#"{"attach": "http", "maxAge": {"claim": "exp", "code": 1008},
            "drain": {"endSilentAfter": "0.5s"}}"#,
    );
    assert_eq!(
        config.to_string(),
        "enforce true, closeHandshakeTimeout 10s, tcpCloseTimeout 1s, answerClientClose true, \
         maxAge claim exp, code 1008, drain within 30s, code 1001, endSilentAfter 0.5s"
    );
}

#[test]
fn durations() {
    let nanos = |n| Some(Duration::from_nanos(n));
    for (text, expected) in [
        ("10s", nanos(10_000_000_000)),
        ("0.5s", nanos(500_000_000)),
        ("0s", nanos(0)),
        ("0.000000001s", nanos(1)),
        ("1.000000001s", nanos(1_000_000_001)),
        ("250ms", nanos(250_000_000)),
        ("1.5h", nanos(5_400_000_000_000)),
        ("30m", nanos(1_800_000_000_000)),
        ("0.0000000001s", None),
        ("-1s", None),
        ("+1s", None),
        ("1.s", None),
        (".5s", None),
        ("s", None),
        ("10", None),
        ("10 s", None),
        ("1e3s", None),
        ("1h30m", None),
        ("99999999999999999999s", None),
        ("18446744073709551615h", None),
        ("", None),
    ] {
        assert_eq!(parse_duration(text), expected, "{text:?}");
    }
}

/// Each bad configuration, and what its error has to name.
#[test]
fn errors_name_the_key_and_what_is_allowed() {
    for (json, expected) in [
        ("", vec!["`attach` is missing"]),
        ("  \n", vec!["`attach` is missing"]),
        ("{}", vec!["`attach` is missing", "network"]),
        ("[]", vec!["the configuration is an array", "expected an object"]),
        ("null", vec!["expected an object"]),
        ("{\"attach\": \"http\"", vec!["EOF"]),
        (r#"{"attach": "http"} x"#, vec!["trailing characters"]),
        (r#"{"attach": "tcp"}"#, vec!["`attach`", "tcp", "\"http\" or \"network\""]),
        (r#"{"attach": 1}"#, vec!["`attach` is 1", "expected a string"]),
        (r#"{"attach": "http", "attach": "network"}"#, vec!["duplicate field `attach`"]),
        (r#"{"attach": "http", "enforced": true}"#, vec!["unknown field `enforced`", "`enforce`"]),
        (
            r#"{"attach": "http", "enforce": "true"}"#,
            vec!["`enforce` is \"true\"", "expected a boolean"],
        ),
        (
            r#"{"attach": "http", "closeHandshakeTimeout": 10}"#,
            vec!["`closeHandshakeTimeout` is 10", "expected a string"],
        ),
        (
            r#"{"attach": "http", "closeHandshakeTimeout": "10"}"#,
            vec!["`closeHandshakeTimeout` is \"10\"", "\"0.5s\""],
        ),
        (r#"{"attach": "http", "tcpCloseTimeout": "-1s"}"#, vec!["`tcpCloseTimeout` is \"-1s\""]),
        (
            r#"{"attach": "http", "tcpCloseTimeout": "25h"}"#,
            vec!["`tcpCloseTimeout` is \"25h\"", "0.001s to 24h"],
        ),
        (
            r#"{"attach": "http", "tcpCloseTimeout": "0.0001s"}"#,
            vec!["`tcpCloseTimeout`", "0.001s to 24h"],
        ),
        (r#"{"attach": "http", "answerClientClose": 0}"#, vec!["`answerClientClose` is 0"]),
        (r#"{"attach": "http", "abnormalClose": 1011}"#, vec!["`abnormalClose` is 1011"]),
        (r#"{"attach": "http", "abnormalClose": {}}"#, vec!["`abnormalClose.code` is missing"]),
        (
            r#"{"attach": "http", "abnormalClose": {"code": 1006}}"#,
            vec!["`abnormalClose.code` is 1006", "1000 to 1003"],
        ),
        (
            r#"{"attach": "http", "abnormalClose": {"code": 70000}}"#,
            vec!["`abnormalClose.code` is 70000"],
        ),
        (
            r#"{"attach": "http", "abnormalClose": {"code": 1011, "text": ""}}"#,
            vec!["`abnormalClose`", "unknown field `text`"],
        ),
        (
            r#"{"attach": "http", "maxAge": {"jitter": 0.1}}"#,
            vec!["`maxAge` needs `maxAge.after` or `maxAge.claim`"],
        ),
        (
            r#"{"attach": "http", "maxAge": {"claim": "iat"}}"#,
            vec!["`maxAge.claim` is \"iat\"", "\"exp\""],
        ),
        (
            r#"{"attach": "http", "drain": {"endSilentAfter": "-1s"}}"#,
            vec!["`drain.endSilentAfter`"],
        ),
        (r#"{"attach": "http", "missingCloseIsFailure": 1}"#, vec!["`missingCloseIsFailure` is 1"]),
        (r#"{"attach": "http", "maxAge": {"after": "0s"}}"#, vec!["`maxAge.after` is \"0s\""]),
        (
            r#"{"attach": "http", "maxAge": {"after": "1h", "jitter": 1.5}}"#,
            vec!["`maxAge.jitter` is 1.5", "0 to 1"],
        ),
        (r#"{"attach": "http", "drain": {"code": 999}}"#, vec!["`drain.code` is 999"]),
        (
            r#"{"attach": "http", "drain": ["1s"]}"#,
            vec!["`drain` is an array", "expected an object"],
        ),
        (
            r#"{"attach": "http", "drain": {"after": "1s"}}"#,
            vec!["`drain`", "unknown field `after`"],
        ),
        (r#"{"attach": "http", "drain": {"code": -1}}"#, vec!["`drain.code` is -1"]),
        (r#"{"attach": "http", "drain": {"code": 1000.5}}"#, vec!["`drain.code` is 1000.5"]),
        (
            r#"{"attach": "http", "drain": {"code": 999999999999}}"#,
            vec!["`drain.code` is 999999999999:"],
        ),
        (r#"{"attach": "http", "drain": {"code": 66536}}"#, vec!["`drain.code` is 66536"]),
        (
            r#"{"attach": "http", "drain": {"code": "1001"}}"#,
            vec!["`drain.code` is \"1001\"", "expected a number"],
        ),
        (
            r#"{"attach": "http", "drain": {"code": 1001, "code": 1001}}"#,
            vec!["duplicate field `code`"],
        ),
        (
            r#"{"attach": "http", "maxAge": {"after": "1h", "jitter": true}}"#,
            vec!["`maxAge.jitter` is true", "expected a number"],
        ),
        (r#"{"attach": "network", "enforce": true}"#, vec!["`enforce` is misplaced"]),
        (r#"{"attach": "network", "drain": {}}"#, vec!["`drain` is misplaced"]),
    ] {
        let error = error(json);
        for part in expected {
            assert!(error.contains(part), "{json}: {error:?} lacks {part:?}");
        }
    }
}

#[test]
fn a_reason_is_counted_in_bytes() {
    let json = |reason: &str| {
        format!(r#"{{"attach": "http", "abnormalClose": {{"code": 1011, "reason": "{reason}"}}}}"#)
    };
    http(&json(&"x".repeat(123)));
    http(&json(&"ß".repeat(61)));
    assert!(error(&json(&"x".repeat(124))).contains("`abnormalClose.reason` is 124 bytes long"));
    assert!(error(&json(&"ß".repeat(62))).contains("at most 123 bytes"));
}

/// JSON null is a value of the wrong type, not an absent key.
#[test]
fn null_is_refused() {
    for key in ["enforce", "abnormalClose", "maxAge", "drain", "tcpCloseTimeout"] {
        let error = error(&format!(r#"{{"attach": "http", "{key}": null}}"#));
        assert!(error.contains(key), "{error}");
    }
}

/// The bounds themselves are allowed, and what is next to them is not.
#[test]
fn bounds() {
    let takes =
        |keys: &str| Config::parse(format!(r#"{{"attach": "http", {keys}}}"#).as_bytes()).is_ok();
    for (good, bad) in [
        (r#""tcpCloseTimeout": "24h""#, r#""tcpCloseTimeout": "86400.001s""#),
        (r#""tcpCloseTimeout": "0.001s""#, r#""tcpCloseTimeout": "0.000999999s""#),
        (r#""maxAge": {"after": "8784h"}"#, r#""maxAge": {"after": "8784.001h"}"#),
        (r#""maxAge": {"after": "0.001s"}"#, r#""maxAge": {"after": "0s"}"#),
        (r#""drain": {"within": "24h"}"#, r#""drain": {"within": "24.001h"}"#),
        (r#""drain": {"within": "0s"}"#, r#""drain": {"within": "0.0005s"}"#),
        (
            r#""maxAge": {"after": "1h", "jitter": 1}"#,
            r#""maxAge": {"after": "1h", "jitter": 1.01}"#,
        ),
    ] {
        assert!(takes(good), "{good}");
        assert!(!takes(bad), "{bad}");
    }
}
