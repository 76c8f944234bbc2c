-- The same text runs on SQLite and PostgreSQL: TEXT ids, BIGINT microseconds since 1970, JSON as TEXT,
-- BIGINT flags.

CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE api_key (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    -- The first characters, for people.
    prefix TEXT NOT NULL,
    -- SHA-256 of the key in hex: a key has 160 random bits, so a fast hash is right.
    hash TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT
);

CREATE TABLE runner (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    credential_hash TEXT NOT NULL UNIQUE,
    -- What it said last.
    facts TEXT NOT NULL,
    -- `open`, `cordoned` or `draining`.
    mode TEXT NOT NULL,
    joined_at BIGINT NOT NULL,
    last_seen_at BIGINT NOT NULL
);

CREATE TABLE sandbox (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    -- The name until the sandbox is deleted, then NULL: a name is taken by one living sandbox.
    live_name TEXT UNIQUE,
    group_name TEXT NOT NULL,
    labels TEXT NOT NULL,
    spec TEXT NOT NULL,
    desired TEXT NOT NULL,
    observed TEXT NOT NULL,
    -- 1 when it was stopped and nobody asked for that: it starts again when it is used.
    asleep BIGINT NOT NULL,
    reason TEXT NOT NULL,
    generation BIGINT NOT NULL,
    revision BIGINT NOT NULL,
    runner_id TEXT,
    unenforced TEXT NOT NULL,
    job_id TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    stopped_at BIGINT,
    deleted_at BIGINT,
    expires_at BIGINT,
    -- When the lease ends; NULL without one.
    lease_until BIGINT,
    -- Idle microseconds after which it is stopped; NULL for never.
    auto_stop BIGINT,
    -- 1 once its runner has said that nothing is left, or it was never placed.
    box_gone BIGINT NOT NULL
);
CREATE INDEX sandbox_by_runner ON sandbox (runner_id, observed);
CREATE INDEX sandbox_by_age ON sandbox (created_at, id);
-- Those that wait are read oldest first, after each change of room.
CREATE INDEX sandbox_by_state ON sandbox (observed, created_at, id);
CREATE INDEX sandbox_by_expiry ON sandbox (expires_at);
CREATE INDEX sandbox_by_auto_stop ON sandbox (auto_stop, observed);
CREATE INDEX sandbox_by_name ON sandbox (name, created_at);
CREATE INDEX sandbox_by_lease ON sandbox (lease_until);

CREATE TABLE job (
    id TEXT PRIMARY KEY,
    type TEXT NOT NULL,
    sandbox_id TEXT NOT NULL,
    runner_id TEXT,
    status TEXT NOT NULL,
    error TEXT NOT NULL,
    -- Those that failed, as JSON.
    attempts TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    -- When it fails by itself.
    deadline_at BIGINT NOT NULL,
    started_at BIGINT,
    finished_at BIGINT
);
CREATE INDEX job_by_sandbox ON job (sandbox_id, created_at);
CREATE INDEX job_by_age ON job (created_at, id);
CREATE INDEX job_open ON job (finished_at, deadline_at);

-- The end of what a process wrote, for when its agent is gone.
CREATE TABLE process_log (
    sandbox_id TEXT NOT NULL,
    started_at BIGINT NOT NULL,
    pid BIGINT NOT NULL,
    -- A ProcessLog of dispense.v1, in base64.
    log TEXT NOT NULL,
    PRIMARY KEY (sandbox_id, started_at, pid)
);
