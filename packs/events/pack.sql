-- Event ingestion and analytics: clients bring events with keys of their own, and see what became of them.
-- The engine's own stream `events` takes them in (POST /api/v1/events/ingest and /batch) and notes who sent each:
-- 'client:acme' for a key of acme, the name of a user otherwise.

-- Everybody sees their own events; whoever looks after every tenant sees all.
CREATE ROW FILTER own_events ON events USING (sender = session_user());

-- Processing. An event that fails here is a dead letter with its reason. Change the statement for what your events need.
CREATE STREAM events_processed WITH (tenant = 'tenant') AS SELECT
  event_id, event_type, sender, tenant, payload, timestamp,
  _recorded_at AS received_at,
  _partition   AS source_partition,
  _offset      AS source_offset
FROM events;

CREATE ROW FILTER own_events_processed ON events_processed USING (sender = session_user());

-- How long it took, as counts of intervals whose ends are 2 % apart (0.0198026273 is the logarithm of 1.02): quantiles
-- of any days put together are right to 1 %.
CREATE TABLE processing_times AS SELECT
  CAST(_recorded_at AS DATE) AS day, sender, tenant,
  CAST(ceil(ln(CAST(greatest(CAST(_recorded_at AS BIGINT) - CAST(received_at AS BIGINT), 1) AS DOUBLE)) / 0.0198026273) AS INT) AS bucket,
  COUNT(*) AS events,
  SUM(CAST(_recorded_at AS BIGINT) - CAST(received_at AS BIGINT)) AS total_us,
  MAX(CAST(_recorded_at AS BIGINT) - CAST(received_at AS BIGINT)) AS max_us
FROM events_processed GROUP BY day, sender, tenant, bucket;

CREATE ROW FILTER own_processing_times ON processing_times
USING (sender = session_user() AND tenant = session_tenant());

CREATE ENDPOINT '/api/v1/events/{event_id}' (event_id TEXT, client_id TEXT DEFAULT NULL)
REQUIRES view_own RETURNS OBJECT AS
WITH event AS (
  SELECT * FROM events
  WHERE event_id = $event_id AND ($client_id IS NULL OR sender IN ($client_id, concat('client:', $client_id)))
  ORDER BY _recorded_at DESC LIMIT 1
),
processed AS (
  SELECT source_partition, source_offset, min(_recorded_at) AS at
  FROM events_processed WHERE event_id = $event_id GROUP BY source_partition, source_offset
),
failed AS (
  SELECT source_partition, source_offset, min(_recorded_at) AS at, min(detail) AS error
  FROM _dead_letters
  WHERE stream = 'events' AND starts_with(source, 'stream:events_processed') GROUP BY source_partition, source_offset
)
SELECT
  e.event_id, e.event_type, regexp_replace(e.sender, '^client:', '') AS client_id, json(e.payload) AS payload, e.timestamp,
  CASE WHEN p.at IS NOT NULL THEN 'processed' WHEN f.at IS NOT NULL THEN 'failed' ELSE 'received' END AS status,
  e._recorded_at AS received_at,
  coalesce(p.at, f.at) AS processed_at,
  CAST(CAST(coalesce(p.at, f.at) AS BIGINT) - CAST(e._recorded_at AS BIGINT) AS DOUBLE) / 1000 AS latency_ms,
  f.error,
  e._offset AS "offset"
FROM event e
LEFT JOIN processed p ON p.source_partition = e._partition AND p.source_offset = e._offset
LEFT JOIN failed f ON f.source_partition = e._partition AND f.source_offset = e._offset;

CREATE ENDPOINT '/api/v1/analytics/events-by-type' (
  "from" TIMESTAMP DEFAULT '1970-01-01T00:00:00Z', "to" TIMESTAMP DEFAULT NULL, client_id TEXT DEFAULT NULL,
  group_by TEXT DEFAULT 'type' CHECK (regexp_like(group_by, '^(type|client|hour)(,(type|client|hour))*$'))
)
REQUIRES view_own RETURNS OBJECT AS
WITH counted AS (
  SELECT
    CASE WHEN strpos($group_by, 'type') > 0   THEN event_type END AS event_type,
    CASE WHEN strpos($group_by, 'client') > 0 THEN regexp_replace(sender, '^client:', '') END AS client_id,
    CASE WHEN strpos($group_by, 'hour') > 0   THEN date_trunc('hour', _event_time) END AS hour,
    COUNT(*) AS count
  FROM events
  WHERE _event_time >= $from AND ($to IS NULL OR _event_time < $to)
    AND ($client_id IS NULL OR sender IN ($client_id, concat('client:', $client_id)))
  GROUP BY 1, 2, 3
)
SELECT
  $from AS "from", coalesce($to, arrow_cast(now(), 'Timestamp(Microsecond, Some("UTC"))')) AS "to",
  coalesce(
    array_agg(named_struct('event_type', event_type, 'client_id', client_id, 'hour', hour, 'count', count)
      ORDER BY count DESC, event_type, client_id, hour),
    make_array()
  ) AS results,
  coalesce(sum(count), 0) AS total
FROM counted;

CREATE ENDPOINT '/api/v1/analytics/processing-metrics' (days INT DEFAULT 7 CHECK (days BETWEEN 1 AND 3650))
REQUIRES view_own RETURNS OBJECT AS
WITH times AS (
  SELECT CAST(day AS TEXT) AS day, bucket, events, total_us, max_us FROM processing_times
  WHERE day > CAST(now() AS DATE) - CAST(concat($days, ' days') AS INTERVAL)
),
failed AS (
  SELECT CAST(CAST(_recorded_at AS DATE) AS TEXT) AS day, COUNT(*) AS failed FROM _dead_letters
  WHERE stream = 'events' AND source <> 'door'
    AND _recorded_at > CAST(now() AS DATE) - CAST(concat($days - 1, ' days') AS INTERVAL)
  GROUP BY 1
),
-- Each day, and all of them together.
spans AS (
  SELECT day AS span, bucket, SUM(events) AS events, SUM(total_us) AS total_us, MAX(max_us) AS max_us
  FROM times GROUP BY day, bucket
  UNION ALL
  SELECT 'all', bucket, SUM(events), SUM(total_us), MAX(max_us) FROM times GROUP BY bucket
),
ranked AS (
  SELECT *, SUM(events) OVER (PARTITION BY span ORDER BY bucket) AS upto, SUM(events) OVER (PARTITION BY span) AS of FROM spans
),
figures AS (
  SELECT
    span, SUM(events) AS count,
    round(least(power(1.02, MIN(CASE WHEN upto >= of * 0.50 THEN bucket END) - 0.5), CAST(MAX(max_us) AS DOUBLE)) / 1000, 3) AS p50,
    round(least(power(1.02, MIN(CASE WHEN upto >= of * 0.95 THEN bucket END) - 0.5), CAST(MAX(max_us) AS DOUBLE)) / 1000, 3) AS p95,
    round(least(power(1.02, MIN(CASE WHEN upto >= of * 0.99 THEN bucket END) - 0.5), CAST(MAX(max_us) AS DOUBLE)) / 1000, 3) AS p99,
    round(CAST(SUM(total_us) AS DOUBLE) / SUM(events) / 1000, 3) AS mean,
    CAST(MAX(max_us) AS DOUBLE) / 1000 AS max
  FROM ranked GROUP BY span
),
per_day AS (
  SELECT
    coalesce(f.span, d.day) AS day, coalesce(f.count, 0) AS count, coalesce(d.failed, 0) AS failed,
    named_struct('p50', f.p50, 'p95', f.p95, 'p99', f.p99, 'mean', f.mean, 'max', f.max) AS latency_ms
  FROM (SELECT * FROM figures WHERE span <> 'all') f FULL JOIN failed d ON d.day = f.span
)
SELECT
  coalesce((SELECT count FROM figures WHERE span = 'all'), 0) AS count,
  coalesce((SELECT SUM(failed) FROM failed), 0) AS failed,
  (SELECT named_struct('p50', MAX(p50), 'p95', MAX(p95), 'p99', MAX(p99), 'mean', MAX(mean), 'max', MAX(max))
   FROM figures WHERE span = 'all') AS latency_ms,
  coalesce(
    (SELECT array_agg(named_struct('day', day, 'count', count, 'failed', failed, 'latency_ms', latency_ms) ORDER BY day DESC)
     FROM per_day),
    make_array()
  ) AS per_day;

-- How it goes, told every second: figures of one's own events today, over a WebSocket or as server-sent events.
CREATE TABLE received_counts AS SELECT CAST(_recorded_at AS DATE) AS day, sender, tenant, COUNT(*) AS events
FROM events GROUP BY day, sender, tenant;

CREATE ROW FILTER own_received_counts ON received_counts
USING (sender = session_user() AND tenant = session_tenant());

CREATE ENDPOINT '/api/v1/ws/metrics' (client_id TEXT DEFAULT NULL) REQUIRES view_own RETURNS LIVE EVERY 1 SECOND AS
WITH times AS (
  SELECT bucket, SUM(events) AS events, MAX(max_us) AS max_us FROM processing_times
  WHERE day = CAST(now() AS DATE) AND ($client_id IS NULL OR sender IN ($client_id, concat('client:', $client_id)))
  GROUP BY bucket
),
ranked AS (SELECT *, SUM(events) OVER (ORDER BY bucket) AS upto, SUM(events) OVER () AS of FROM times)
SELECT
  (SELECT coalesce(SUM(events), 0) FROM received_counts
   WHERE day = CAST(now() AS DATE) AND ($client_id IS NULL OR sender IN ($client_id, concat('client:', $client_id)))) AS received,
  coalesce(SUM(events), 0) AS processed,
  (SELECT COUNT(*) FROM _dead_letters
   WHERE stream = 'events' AND _recorded_at >= CAST(CAST(now() AS DATE) AS TIMESTAMP)
     AND ($client_id IS NULL OR principal IN ($client_id, concat('client:', $client_id)))) AS failed,
  named_struct(
    'p50', round(least(power(1.02, MIN(CASE WHEN upto >= of * 0.50 THEN bucket END) - 0.5), CAST(MAX(max_us) AS DOUBLE)) / 1000, 3),
    'p95', round(least(power(1.02, MIN(CASE WHEN upto >= of * 0.95 THEN bucket END) - 0.5), CAST(MAX(max_us) AS DOUBLE)) / 1000, 3),
    'p99', round(least(power(1.02, MIN(CASE WHEN upto >= of * 0.99 THEN bucket END) - 0.5), CAST(MAX(max_us) AS DOUBLE)) / 1000, 3),
    'max', CAST(MAX(max_us) AS DOUBLE) / 1000
  ) AS latency_ms
FROM ranked;

CREATE ENDPOINT '/api/v1/live/metrics' (client_id TEXT DEFAULT NULL) REQUIRES view_own RETURNS LIVE EVERY 1 SECOND AS
WITH times AS (
  SELECT bucket, SUM(events) AS events, MAX(max_us) AS max_us FROM processing_times
  WHERE day = CAST(now() AS DATE) AND ($client_id IS NULL OR sender IN ($client_id, concat('client:', $client_id)))
  GROUP BY bucket
),
ranked AS (SELECT *, SUM(events) OVER (ORDER BY bucket) AS upto, SUM(events) OVER () AS of FROM times)
SELECT
  (SELECT coalesce(SUM(events), 0) FROM received_counts
   WHERE day = CAST(now() AS DATE) AND ($client_id IS NULL OR sender IN ($client_id, concat('client:', $client_id)))) AS received,
  coalesce(SUM(events), 0) AS processed,
  (SELECT COUNT(*) FROM _dead_letters
   WHERE stream = 'events' AND _recorded_at >= CAST(CAST(now() AS DATE) AS TIMESTAMP)
     AND ($client_id IS NULL OR principal IN ($client_id, concat('client:', $client_id)))) AS failed,
  named_struct(
    'p50', round(least(power(1.02, MIN(CASE WHEN upto >= of * 0.50 THEN bucket END) - 0.5), CAST(MAX(max_us) AS DOUBLE)) / 1000, 3),
    'p95', round(least(power(1.02, MIN(CASE WHEN upto >= of * 0.95 THEN bucket END) - 0.5), CAST(MAX(max_us) AS DOUBLE)) / 1000, 3),
    'p99', round(least(power(1.02, MIN(CASE WHEN upto >= of * 0.99 THEN bucket END) - 0.5), CAST(MAX(max_us) AS DOUBLE)) / 1000, 3),
    'max', CAST(MAX(max_us) AS DOUBLE) / 1000
  ) AS latency_ms
FROM ranked;
