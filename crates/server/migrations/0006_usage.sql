-- What sandboxes used over time. A row has the samples of an hour by the minute, or of a day by the quarter of an hour,
-- packed and in base64.
CREATE TABLE usage (
    sandbox_id TEXT NOT NULL,
    step_secs BIGINT NOT NULL,
    -- Seconds since 1970.
    start_at BIGINT NOT NULL,
    samples TEXT NOT NULL,
    PRIMARY KEY (sandbox_id, step_secs, start_at)
);
CREATE INDEX usage_age ON usage (step_secs, start_at);
