-- Transaction analytics: an event stream becomes a clean, masked stream, tables and endpoints.

CREATE STREAM transaction_log (
  transaction_id    TEXT NOT NULL,
  timestamp         TIMESTAMP NOT NULL,
  user_id           TEXT SENSITIVE,
  user_name         TEXT SENSITIVE,
  product_id        TEXT,
  amount            DECIMAL(15,2) NOT NULL,
  currency          TEXT,
  transaction_type  TEXT,
  status            TEXT NOT NULL,
  location          STRUCT<city TEXT, country TEXT>,
  payment_method    TEXT,
  product_category  TEXT,
  quantity          INT,
  shipping_address  STRUCT<street TEXT, zip TEXT, city TEXT, country TEXT>,
  device_info       STRUCT<os TEXT, browser TEXT, ip_address TEXT>,
  customer_rating   INT,
  discount_code     TEXT,
  tax_amount        DECIMAL(15,2)
) WITH (
  -- The same transaction with another status is a new event of its lifecycle.
  event_id = 'transaction_id, status, timestamp',
  event_time = 'timestamp',
  key = 'user_id',
  -- What is SENSITIVE is encrypted for each user: `highwater erase --subject …` destroys that key.
  subject = 'user_id',
  sensitive = 'shipping_address.street, shipping_address.zip, device_info.ip_address'
);

-- Rates to USD; an event takes the rate of its own date. Edit the file and apply again to change them.
CREATE REFERENCE TABLE currency_rates (currency TEXT, valid_from DATE, usd_rate DECIMAL(12,6))
  WITH (csv = 'reference/currency_rates.csv', key = 'currency', valid_from = 'valid_from');

CREATE REFERENCE TABLE blacklisted_places (city TEXT, country TEXT)
  WITH (csv = 'reference/blacklisted_places.csv', key = 'city, country');

CREATE STREAM transactions_flat AS SELECT
  transaction_id, timestamp, user_id, user_name, product_id, amount, currency, transaction_type, status,
  location['city']            AS location_city,
  location['country']         AS location_country,
  payment_method, product_category, quantity,
  shipping_address['street']  AS shipping_street,
  shipping_address['zip']     AS shipping_zip,
  shipping_address['city']    AS shipping_city,
  shipping_address['country'] AS shipping_country,
  device_info['os']           AS device_os,
  device_info['browser']      AS device_browser,
  device_info['ip_address']   AS device_ip,
  customer_rating, discount_code, tax_amount
FROM transaction_log;

-- The clean stream. An unknown currency is a dead letter, not a null.
CREATE STREAM transactions_processed
  WITH (
    hidden = 'user_token',
    search = 'transaction_id, product_id, currency, transaction_type, status, location_city, location_country, payment_method, product_category, discount_code',
    aliases = 'amount = amount_usd, country = location_country, rating = customer_rating, payement_method = payment_method'
  )
AS SELECT
  transaction_id, timestamp,
  mask(user_id)         AS user_id,
  mask(user_name)       AS user_name,
  product_id,
  amount * lookup('currency_rates', 'usd_rate', currency, CAST(timestamp AS DATE)) AS amount_usd,
  currency, transaction_type, status, location_city, location_country, payment_method, product_category, quantity,
  mask(shipping_street) AS shipping_street,
  mask(shipping_zip)    AS shipping_zip,
  shipping_city, shipping_country, device_os, device_browser,
  mask(device_ip)       AS device_ip,
  customer_rating, discount_code,
  tokenize(user_id)     AS user_token
FROM transactions_flat
WHERE NOT in_reference('blacklisted_places', location_city, location_country);

CREATE STREAM transactions_blacklisted AS SELECT * FROM transactions_flat
WHERE in_reference('blacklisted_places', location_city, location_country);

CREATE STREAM transactions_completed  AS SELECT * FROM transactions_processed WHERE status = 'completed';
CREATE STREAM transactions_pending    AS SELECT * FROM transactions_processed WHERE status = 'pending';
CREATE STREAM transactions_failed     AS SELECT * FROM transactions_processed WHERE status = 'failed';
CREATE STREAM transactions_processing AS SELECT * FROM transactions_processed WHERE status = 'processing';
CREATE STREAM transactions_cancelled  AS SELECT * FROM transactions_processed WHERE status = 'cancelled';

CREATE TABLE total_depense_par_user_type AS
SELECT user_token AS user_id, transaction_type, sum(amount_usd) AS total_depense_usd
FROM transactions_processed GROUP BY user_token, transaction_type;

CREATE TABLE total_par_transaction_type AS
SELECT transaction_type, sum(amount_usd) AS total_usd, count(*) AS transactions
FROM transactions_processed GROUP BY transaction_type;

CREATE TABLE product_purchase_counts AS
SELECT product_id, count(*) AS purchase_count
FROM transactions_processed WHERE transaction_type = 'purchase' GROUP BY product_id;

CREATE TABLE total_par_type_5min_sliding AS
SELECT transaction_type, sum(amount_usd) AS total_amount_5min, window_start, window_end
FROM transactions_processed
WINDOW HOPPING (SIZE 5 MINUTES, ADVANCE BY 1 MINUTE, GRACE PERIOD 1 HOUR)
GROUP BY transaction_type;

CREATE TABLE transaction_lifecycle AS
SELECT transaction_id,
  collect_list(status)        AS status_history,
  latest_by_offset(timestamp) AS last_update_time,
  latest_by_offset(status)    AS status
FROM transactions_processed GROUP BY transaction_id;

CREATE ENDPOINT '/api/metrics/total-by-user/' REQUIRES view_metrics AS
SELECT user_id, transaction_type, money(total) AS total_depense_usd, last_updated_at
FROM (SELECT user_id, transaction_type, total_depense_usd AS total, last_updated_at FROM total_depense_par_user_type)
ORDER BY user_id, total DESC;

CREATE ENDPOINT '/api/metrics/top-products/' (x INT DEFAULT 10 CHECK (x > 0)) REQUIRES view_metrics AS
SELECT product_id, purchase_count, last_updated_at
FROM product_purchase_counts ORDER BY purchase_count DESC, product_id LIMIT $x;

CREATE ENDPOINT '/api/metrics/last-5-min/' REQUIRES view_metrics AS
SELECT transaction_type, money(total_amount_5min) AS total_amount_5min, window_start AS window_start_time
FROM "total_par_type_5min_sliding$newest" ORDER BY transaction_type;

-- Old events again: the first one of a transaction at once, or all of them as a job. Each gets the time of now and a link
-- to its original; a second job adds nothing twice.
CREATE ENDPOINT POST '/api/data/repush-transaction/' (transaction_id TEXT) REQUIRES repush_transaction
REPLAYS transaction_log WHERE transaction_id = $transaction_id SET ("re-pushed_from_api" = true);

CREATE ENDPOINT POST '/api/data/repush-all/' REQUIRES repush_all_transactions
REPLAYS transaction_log SET ("re-pushed_from_api" = true) AS JOB;

-- The clean stream by words, from a date on: all words of the term in one column.
CREATE ENDPOINT POST '/api/search/' (search_term TEXT CHECK (trim(search_term) <> ''), start_date TIMESTAMP)
REQUIRES search_datalake RETURNS HITS AS
SELECT
  transaction_id, timestamp, user_id, product_id, amount_usd, currency, transaction_type, status, location_city, location_country,
  payment_method, product_category, quantity, discount_code, _event_time, _partition, _offset
FROM transactions_processed
WHERE _event_time >= $start_date
  AND (matches(transaction_id, $search_term) OR matches(product_id, $search_term) OR matches(currency, $search_term)
    OR matches(transaction_type, $search_term) OR matches(status, $search_term) OR matches(location_city, $search_term)
    OR matches(location_country, $search_term) OR matches(payment_method, $search_term)
    OR matches(product_category, $search_term) OR matches(discount_code, $search_term));

-- What is sold. Callers write it: the changes are the stream products_changes, and a caller that sends the ETag of a row back
-- as If-Match never writes over what another has changed meanwhile.
CREATE TABLE products (
  id          BIGINT GENERATED ALWAYS AS IDENTITY,
  name        TEXT NOT NULL,
  description TEXT,
  price       DECIMAL(10,2) NOT NULL
) WITH (key = 'id');

CREATE ENDPOINT '/api/products/' REQUIRES view_products RETURNS NUMBERED PAGES OF 3 AS
SELECT id, name, description, money(price) AS price FROM products ORDER BY id;

CREATE ENDPOINT '/api/products/most-expensive/' REQUIRES view_expensive_product RETURNS OBJECT AS
SELECT id, name, description, money(amount) AS price, version AS _version
FROM (SELECT id, name, description, price AS amount, version FROM products) ORDER BY amount DESC, id LIMIT 1;

CREATE ENDPOINT '/api/products/{id}/' (id BIGINT) REQUIRES view_products RETURNS OBJECT AS
SELECT id, name, description, money(price) AS price, version AS _version FROM products WHERE id = $id;

CREATE ENDPOINT POST '/api/products/' (
  name        TEXT CHECK (trim(name) <> '' AND char_length(name) <= 200),
  description TEXT DEFAULT NULL,
  price       DECIMAL(10,2) CHECK (price >= 0)
) REQUIRES add_products
INSERTS INTO products RETURNING id, name, description, money(price) AS price;

CREATE ENDPOINT PUT '/api/products/{id}/' (
  id          BIGINT,
  name        TEXT CHECK (trim(name) <> '' AND char_length(name) <= 200),
  description TEXT DEFAULT NULL,
  price       DECIMAL(10,2) CHECK (price >= 0)
) REQUIRES edit_products
UPDATES products RETURNING id, name, description, money(price) AS price;

CREATE ENDPOINT DELETE '/api/products/{id}/' (id BIGINT) REQUIRES edit_products DELETES FROM products;

-- How likely a payment fails. The events hold no label of fraud; that a payment failed is the nearest that they say of
-- themselves. Declare the model again with a label of your own, and train it: POST /api/rpc/train-model/ answers with a job.
CREATE MODEL fraud_detection PREDICTS failed AS
SELECT
  amount_usd,
  quantity,
  customer_rating,
  date_part('hour', timestamp)              AS hour,
  transaction_type = 'refund'               AS refund,
  transaction_type = 'withdrawal'           AS withdrawal,
  payment_method = 'cryptocurrency'         AS cryptocurrency,
  payment_method IN ('apple_pay', 'google_pay') AS wallet,
  currency <> 'USD'                         AS foreign_currency,
  location_country IS DISTINCT FROM shipping_country AS shipped_abroad,
  discount_code IS NOT NULL                 AS discounted,
  status = 'failed'                         AS failed,
  _event_time
FROM transactions_processed;

CREATE ENDPOINT POST '/api/rpc/train-model/' REQUIRES trigger_ml_model TRAINS MODELS;
