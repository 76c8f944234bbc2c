-- Ports of sandboxes that everybody may see for a time.
CREATE TABLE preview (
    sandbox_id TEXT NOT NULL,
    port BIGINT NOT NULL,
    public_until BIGINT NOT NULL,
    PRIMARY KEY (sandbox_id, port)
);
