//! The main job, seen in your own browser: `make demo-page` serves one page on localhost, on which
//! three lanes, default, baseline and filter, close the same WebSockets side by side.

use std::process::ExitCode;

use clap::Parser;

mod pictures;
mod site;

#[derive(Parser)]
struct Arguments {
    /// The page's port on localhost; 0 is any that is free.
    #[arg(long, default_value_t = 8710)]
    port: u16,
    /// Takes the page's pictures into docs/ and ends.
    #[arg(long)]
    pictures: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    eprintln!("demo page: building the module, finding and starting Envoy three times");
    testbed::fetch::say_what_is_missing();
    testbed::fetch::module();
    testbed::fetch::envoy();
    let site = match site::Site::start(arguments.port).await {
        Ok(site) => site,
        Err(e) => {
            eprintln!("demo page: port {}: {e}; choose another, PORT=0 is any", arguments.port);
            return ExitCode::FAILURE;
        }
    };
    if arguments.pictures {
        tokio::task::block_in_place(|| pictures::take(&site));
        return ExitCode::SUCCESS;
    }
    println!("http://{}/   (Ctrl-C ends it)", site.address);
    let _ = tokio::signal::ctrl_c().await;
    ExitCode::SUCCESS
}
