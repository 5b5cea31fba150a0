# A node's image: the binary, the libraries it is linked to, and nothing else, not even a shell.
#
#   docker build -t tidings .
#   docker build -t tidings --build-arg TIDINGS_COMMIT="$(git rev-parse --short=12 HEAD)" \
#     --build-arg SOURCE_DATE_EPOCH="$(git log -1 --format=%ct)" .
#
# docs/deployment.md tells how to run it. The tag is the toolchain of rust-toolchain.toml.
FROM rust:1.95.0-slim-bookworm AS build

# What the build needs, a package a line.
RUN apt-get update && apt-get install -y --no-install-recommends \
    g++ \
    gcc \
    libc6-dev \
    libssl-dev \
    make \
    pkg-config \
    zlib1g-dev \
  && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY . .

# `ci` is built sooner and runs slower; for tests only.
ARG PROFILE=release
# Told by --version.
ARG TIDINGS_COMMIT=
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/target \
  cargo install --locked --path . --bin tidings --profile "$PROFILE" --target-dir /target --root /out --no-track

# The files of the image, all of one age, so that the same sources give the same files.
ARG SOURCE_DATE_EPOCH=0
RUN set -eu; \
  mkdir -p /root/image/usr/local/bin /root/image/etc /root/data; \
  # Names of functions stay, for the backtrace of a panic.
  strip --strip-debug -o /root/image/usr/local/bin/tidings /out/bin/tidings; \
  ldd /out/bin/tidings > /root/libraries; \
  ! grep 'not found' /root/libraries; \
  awk '{ for (i = 1; i <= NF; i++) if ($i ~ /^\//) print $i }' /root/libraries | \
    xargs cp --dereference --parents --target-directory=/root/image; \
  cp --dereference --parents /etc/ssl/certs/ca-certificates.crt /root/image; \
  echo 'tidings:x:65532:65532::/data:/nonexistent' > /root/image/etc/passwd; \
  echo 'tidings:x:65532:' > /root/image/etc/group; \
  echo 'hosts: files dns' > /root/image/etc/nsswitch.conf; \
  find /root/image /root/data -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

FROM scratch
LABEL org.opencontainers.image.title="Tidings" \
  org.opencontainers.image.description="A horizontally sharded real-time messaging service" \
  org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /root/image/ /
# A new volume takes its owner from here.
COPY --from=build --chown=65532:65532 /root/data/ /data/
# All addresses: the node starts only if AUTH_MODE says who is believed.
# The authorities that TLS believes where no setting names others: OpenSSL would look elsewhere.
ENV SERVER_HOST=0.0.0.0 \
  DATA_DIR=/data \
  LOG_FORMAT=json \
  SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
# Without Postgres the messages are here. The root may be read-only.
VOLUME /data
WORKDIR /data
USER 65532:65532
EXPOSE 8083
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 CMD ["/usr/local/bin/tidings", "health"]
ENTRYPOINT ["/usr/local/bin/tidings"]
