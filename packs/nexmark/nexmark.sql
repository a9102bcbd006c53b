-- Nexmark: an auction site's people, auctions and bids, and the queries of the benchmark over them.
-- q4, q6 and q9 take rows back and are not among them; q10 (write to files) is what the lake does, and
-- q13 (bounded side input) what a reference table does.

CREATE STREAM person (id BIGINT NOT NULL, name TEXT, email_address TEXT, credit_card TEXT, city TEXT, state TEXT,
  date_time TIMESTAMP NOT NULL, extra TEXT) WITH (event_time = 'date_time', lake = false);
CREATE STREAM auction (id BIGINT NOT NULL, item_name TEXT, description TEXT, initial_bid BIGINT, reserve BIGINT,
  date_time TIMESTAMP NOT NULL, expires TIMESTAMP, seller BIGINT, category BIGINT, extra TEXT)
  WITH (event_time = 'date_time', lake = false);
CREATE STREAM bid (auction BIGINT NOT NULL, bidder BIGINT NOT NULL, price BIGINT NOT NULL, channel TEXT, url TEXT,
  date_time TIMESTAMP NOT NULL, extra TEXT) WITH (event_time = 'date_time', lake = false);
-- The same bids, taken by the time of their arrival.
CREATE STREAM bid_arrival (auction BIGINT NOT NULL, bidder BIGINT NOT NULL, price BIGINT NOT NULL) WITH (lake = false);

-- Stateless.
CREATE STREAM q0 WITH (lake = false) AS SELECT auction, bidder, price, date_time, extra FROM bid;
CREATE STREAM q1 WITH (lake = false) AS SELECT auction, bidder, 0.908 * price AS price, date_time, extra FROM bid;
CREATE STREAM q2 WITH (lake = false) AS SELECT auction, price FROM bid WHERE auction % 123 = 0;
CREATE STREAM q14 WITH (lake = false) AS SELECT auction, bidder, 0.908 * price AS price,
  CASE WHEN date_part('hour', date_time) BETWEEN 8 AND 18 THEN 'dayTime'
       WHEN date_part('hour', date_time) <= 6 OR date_part('hour', date_time) >= 20 THEN 'nightTime'
       ELSE 'otherTime' END AS bid_time_type,
  date_time, extra, length(extra) - length(replace(extra, 'c', '')) AS c_counts
  FROM bid WHERE 0.908 * price > 1000000 AND 0.908 * price < 50000000;
CREATE STREAM q21 WITH (lake = false) AS SELECT auction, bidder, price, channel,
  CASE WHEN lower(channel) = 'apple' THEN '0' WHEN lower(channel) = 'google' THEN '1'
       WHEN lower(channel) = 'facebook' THEN '2' WHEN lower(channel) = 'baidu' THEN '3'
       ELSE regexp_match(url, '(&|^)channel_id=([^&]*)')[2] END AS channel_id
  FROM bid WHERE regexp_match(url, '(&|^)channel_id=([^&]*)')[2] IS NOT NULL
    OR lower(channel) IN ('apple', 'google', 'facebook', 'baidu');
CREATE STREAM q22 WITH (lake = false) AS SELECT auction, bidder, price, channel,
  split_part(url, '/', 4) AS dir1, split_part(url, '/', 5) AS dir2, split_part(url, '/', 6) AS dir3 FROM bid;

-- Joins that keep both sides for ever.
CREATE STREAM q3 WITH (lake = false) AS SELECT p.name, p.city, p.state, a.id
  FROM auction a JOIN person p WITHIN 100 YEARS ON a.seller = p.id
  WHERE a.category = 10 AND p.state IN ('or', 'id', 'ca');
CREATE STREAM q20 WITH (lake = false) AS SELECT b.auction, b.bidder, b.price, b.channel, b.url, a.item_name, a.initial_bid, a.seller
  FROM bid b JOIN auction a WITHIN 100 YEARS ON b.auction = a.id WHERE a.category = 10;

-- Windows.
CREATE TABLE q5_counts AS SELECT auction, count(*) AS num, window_start, window_end FROM bid
  WINDOW HOPPING (SIZE 10 SECONDS, ADVANCE BY 2 SECONDS, GRACE PERIOD 1 MINUTE) GROUP BY auction;
CREATE ENDPOINT '/nexmark/q5/' REQUIRES view_metrics AS SELECT c.auction, c.num, c.window_start FROM q5_counts c
  JOIN (SELECT window_start, max(num) AS most FROM q5_counts GROUP BY window_start) m
    ON c.window_start = m.window_start AND c.num = m.most;
CREATE TABLE q7_max AS SELECT max(price) AS price, window_start, window_end FROM bid
  WINDOW TUMBLING (SIZE 10 SECONDS, GRACE PERIOD 1 MINUTE) GROUP BY auction % 1;
CREATE ENDPOINT '/nexmark/q7/' REQUIRES view_metrics AS SELECT b.auction, b.price, b.bidder, b.date_time FROM bid b
  JOIN q7_max m ON b.price = m.price AND b.date_time >= m.window_start AND b.date_time < m.window_end;
CREATE TABLE q8_people AS SELECT id, name, count(*) AS n, window_start FROM person
  WINDOW TUMBLING (SIZE 10 SECONDS, GRACE PERIOD 1 MINUTE) GROUP BY id, name;
CREATE TABLE q8_sellers AS SELECT seller, count(*) AS n, window_start FROM auction
  WINDOW TUMBLING (SIZE 10 SECONDS, GRACE PERIOD 1 MINUTE) GROUP BY seller;
CREATE ENDPOINT '/nexmark/q8/' REQUIRES view_metrics AS SELECT p.id, p.name, p.window_start FROM q8_people p
  JOIN q8_sellers s ON p.id = s.seller AND p.window_start = s.window_start;
CREATE TABLE q11 AS SELECT bidder, count(*) AS bid_count, window_start, window_end FROM bid
  WINDOW SESSION (10 SECONDS, GRACE PERIOD 1 MINUTE) GROUP BY bidder;
CREATE TABLE q12 AS SELECT bidder, count(*) AS bid_count, window_start FROM bid_arrival
  WINDOW TUMBLING (SIZE 10 SECONDS, GRACE PERIOD 0 SECONDS) GROUP BY bidder;

-- Groups.
CREATE TABLE q15 AS SELECT CAST(date_time AS DATE) AS day, count(*) AS total_bids,
  count(*) FILTER (WHERE price < 10000) AS rank1_bids,
  count(*) FILTER (WHERE price >= 10000 AND price < 1000000) AS rank2_bids,
  count(*) FILTER (WHERE price >= 1000000) AS rank3_bids,
  count(DISTINCT bidder) AS total_bidders,
  count(DISTINCT bidder) FILTER (WHERE price < 10000) AS rank1_bidders,
  count(DISTINCT bidder) FILTER (WHERE price >= 10000 AND price < 1000000) AS rank2_bidders,
  count(DISTINCT bidder) FILTER (WHERE price >= 1000000) AS rank3_bidders,
  count(DISTINCT auction) AS total_auctions
  FROM bid GROUP BY CAST(date_time AS DATE);
CREATE TABLE q16 AS SELECT channel, CAST(date_time AS DATE) AS day, max(date_time) AS newest, count(*) AS total_bids,
  count(*) FILTER (WHERE price < 10000) AS rank1_bids, count(DISTINCT bidder) AS total_bidders,
  count(DISTINCT auction) AS total_auctions FROM bid GROUP BY channel, CAST(date_time AS DATE);
CREATE TABLE q17 AS SELECT auction, CAST(date_time AS DATE) AS day, count(*) AS total_bids,
  count(*) FILTER (WHERE price < 10000) AS rank1_bids,
  count(*) FILTER (WHERE price >= 10000 AND price < 1000000) AS rank2_bids,
  count(*) FILTER (WHERE price >= 1000000) AS rank3_bids,
  min(price) AS min_price, max(price) AS max_price, avg(price) AS avg_price, sum(price) AS sum_price
  FROM bid GROUP BY auction, CAST(date_time AS DATE);
CREATE TABLE q18 AS SELECT bidder, auction, latest_by_offset(price) AS price, latest_by_offset(channel) AS channel,
  latest_by_offset(url) AS url, latest_by_offset(date_time) AS date_time FROM bid GROUP BY bidder, auction;
CREATE TABLE q19 AS SELECT auction, topk(price, 10) AS prices FROM bid GROUP BY auction;
