//! The configuration: any bytes are taken or refused with one line; what is taken is within the limits,
//! and is the JSON that serde_json reads.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use ws_clean_close_core::config::Config;
use ws_clean_close_core::frame::Status;

fuzz_target!(|bytes: &[u8]| {
    match Config::parse(bytes) {
        Err(error) => {
            let text = error.to_string();
            assert!(!text.is_empty());
        }
        Ok(config) => {
            let json: serde_json::Value = serde_json::from_slice(bytes).expect("JSON");
            let keys = json.as_object().expect("an object");
            match &config {
                Config::Network => assert_eq!(keys.len(), 1),
                Config::Http(config) => {
                    let _ = config.to_string();
                    let day = Duration::from_secs(24 * 3600);
                    for limit in [config.close_handshake_timeout, config.tcp_close_timeout] {
                        assert!(limit.is_none_or(|l| l >= Duration::from_millis(1) && l <= day));
                    }
                    let own = [
                        config.abnormal_close,
                        config.max_age.as_ref().map(|max_age| max_age.close),
                        config.drain.as_ref().map(|drain| drain.close),
                    ];
                    for close in own.into_iter().flatten() {
                        assert!(matches!(close.status(), Status::Code(..)));
                        assert!(close.to_server_frame().len() <= 127);
                    }
                    if let Some(max_age) = &config.max_age {
                        assert!((0.0..=1.0).contains(&max_age.jitter));
                        // As it is multiplied in use.
                        let _ = max_age.after.map(|after| after.mul_f64(1.0 + max_age.jitter));
                        assert!(max_age.after.is_some() || max_age.claim);
                    }
                }
            }
            // The same again.
            assert_eq!(Config::parse(bytes), Ok(config));
        }
    }
});
