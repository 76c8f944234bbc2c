-- Public keys that open as an account.
CREATE TABLE ssh_key (
    fingerprint TEXT PRIMARY KEY,
    public_key TEXT NOT NULL,
    account TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
