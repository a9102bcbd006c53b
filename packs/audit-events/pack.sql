-- Audit events of applications: who did what to what. They come in one by one or in batches, are found again by any of
-- their members and by the words of their details, and each can be proven to be as it was written.

CREATE STREAM audit_events (
  id        TEXT,
  tenant_id TEXT,
  actor     TEXT NOT NULL,
  action    TEXT NOT NULL,
  resource  TEXT NOT NULL,
  timestamp TIMESTAMP NOT NULL,
  outcome   TEXT,
  ip        TEXT,
  details   JSON
) WITH (event_id = 'id', event_time = 'timestamp', tenant = 'tenant_id', proof = true,
  search = 'actor, action, resource, outcome, details');

-- Whoever has the permission sees the events of their tenant: users who were given it, keys with it among their scopes,
-- and these roles.
CREATE POLICY audit_event_readers AS $$
@id("auditors, engineers and analysts see the audit events of their tenant")
permit (principal, action == Action::"use", resource)
when {
  context.permission == "view_audit_events" &&
  (principal in Role::"SecurityAuditor" || principal in Role::"DataEngineer" || principal in Role::"DataAnalyst")
};
$$;

CREATE ENDPOINT POST '/events' INTO audit_events;
CREATE ENDPOINT POST '/events/batch' INTO audit_events AS BATCH;

-- Newest first. A filter is the whole of a member, or with a * at its end the beginning; q is found in the details.
CREATE ENDPOINT '/events' (
  actor TEXT DEFAULT NULL, action TEXT DEFAULT NULL, resource TEXT DEFAULT NULL, outcome TEXT DEFAULT NULL,
  tenant_id TENANT DEFAULT NULL, time_from TIMESTAMP DEFAULT NULL, time_to TIMESTAMP DEFAULT NULL, q TEXT DEFAULT NULL
)
REQUIRES view_audit_events RETURNS PAGE OF events CACHED FOR 1 SECOND AS
SELECT
  id, tenant_id, actor, action, resource, timestamp, outcome, ip, json(details) AS details,
  _partition AS "partition", _offset AS "offset", _event_time, _partition, _offset
FROM audit_events
WHERE ($actor IS NULL OR actor = $actor OR (right($actor, 1) = '*' AND starts_with(actor, left($actor, -1))))
  AND ($action IS NULL OR action = $action OR (right($action, 1) = '*' AND starts_with(action, left($action, -1))))
  AND ($resource IS NULL OR resource = $resource OR (right($resource, 1) = '*' AND starts_with(resource, left($resource, -1))))
  AND ($outcome IS NULL OR outcome = $outcome)
  AND ($tenant_id IS NULL OR tenant_id = $tenant_id)
  AND ($time_from IS NULL OR _event_time >= $time_from)
  AND ($time_to IS NULL OR _event_time < $time_to)
  AND ($q IS NULL OR matches(json(details), $q));

CREATE ENDPOINT '/events/export' (
  actor TEXT DEFAULT NULL, action TEXT DEFAULT NULL, resource TEXT DEFAULT NULL, outcome TEXT DEFAULT NULL,
  tenant_id TENANT DEFAULT NULL, time_from TIMESTAMP DEFAULT NULL, time_to TIMESTAMP DEFAULT NULL, q TEXT DEFAULT NULL
)
REQUIRES view_audit_events RETURNS FILE AS
SELECT
  id, tenant_id, actor, action, resource, timestamp, outcome, ip, json(details) AS details,
  _recorded_at AS recorded_at, _partition AS "partition", _offset AS "offset"
FROM audit_events
WHERE ($actor IS NULL OR actor = $actor OR (right($actor, 1) = '*' AND starts_with(actor, left($actor, -1))))
  AND ($action IS NULL OR action = $action OR (right($action, 1) = '*' AND starts_with(action, left($action, -1))))
  AND ($resource IS NULL OR resource = $resource OR (right($resource, 1) = '*' AND starts_with(resource, left($resource, -1))))
  AND ($outcome IS NULL OR outcome = $outcome)
  AND ($tenant_id IS NULL OR tenant_id = $tenant_id)
  AND ($time_from IS NULL OR _event_time >= $time_from)
  AND ($time_to IS NULL OR _event_time < $time_to)
  AND ($q IS NULL OR matches(json(details), $q));

-- Two senders may use the same id: the first event of that id is meant, or the one at a place, as pages say it.
CREATE ENDPOINT '/events/{id}' (id TEXT, "partition" INT DEFAULT NULL, "offset" BIGINT DEFAULT NULL)
REQUIRES view_audit_events RETURNS OBJECT AS
SELECT
  id, tenant_id, actor, action, resource, timestamp, outcome, ip, json(details) AS details,
  _recorded_at AS recorded_at, _partition AS "partition", _offset AS "offset"
FROM audit_events
WHERE id = $id AND ($partition IS NULL OR _partition = $partition) AND ($offset IS NULL OR _offset = $offset)
ORDER BY _recorded_at, _partition, _offset LIMIT 1;

CREATE ENDPOINT '/events/{id}/proof' (id TEXT, "partition" INT DEFAULT NULL, "offset" BIGINT DEFAULT NULL)
REQUIRES view_audit_events RETURNS PROOF OF audit_events AS
SELECT _partition, _offset FROM audit_events
WHERE id = $id AND ($partition IS NULL OR _partition = $partition) AND ($offset IS NULL OR _offset = $offset)
ORDER BY _recorded_at, _partition, _offset LIMIT 1;
