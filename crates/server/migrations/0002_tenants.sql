-- Keys of several secrets belong to one account; a scope narrows what a key reaches.
ALTER TABLE api_key ADD COLUMN account TEXT NOT NULL DEFAULT '';
-- Empty for everything, `group:NAME`, or `sandboxes:ID,ID`.
ALTER TABLE api_key ADD COLUMN scope TEXT NOT NULL DEFAULT '';
ALTER TABLE api_key ADD COLUMN revoked_at BIGINT;
UPDATE api_key SET account = id;

-- The account of the key that created it; empty for those that were there before.
ALTER TABLE sandbox ADD COLUMN owner TEXT NOT NULL DEFAULT '';
CREATE INDEX sandbox_by_group ON sandbox (group_name, created_at);

-- Sealed values: the nonce and the ciphertext in base64, and the number of the key that sealed them.
CREATE TABLE secret (
    name TEXT PRIMARY KEY,
    key_id BIGINT NOT NULL,
    sealed TEXT NOT NULL
);
