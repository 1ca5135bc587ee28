# The module as an image, where there is a container engine; `make image` does without, and its
# digests can be foretold.
#
#     docker build --tag registry.example.com/ws-clean-close:0.1.0 .
FROM rust:1.89 AS build
RUN rustup target add wasm32-wasip1
WORKDIR /src
COPY . .
RUN scripts/build-module

# Istio's fetcher looks for this name.
FROM scratch
COPY --from=build /src/target/wasm32-wasip1/release/ws_clean_close.wasm /plugin.wasm
