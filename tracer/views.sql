-- The questions that a trace is asked, as views and macros that lie in the file itself: every client has them.
-- A table macro finds its tables only in the current database: with several files attached, say USE first.
-- Rows lie image by image and step by step. A condition on run_id, sample or step that names a value skips the rest of
-- the file in every view; a join with `images` does so in `attn` and `stats`, but not in a view of means.

-- A map's value from its code, and from the bits of a half-precision number.
CREATE MACRO deq(low, step, q) AS ((low + step * q) * (low + step * q))::FLOAT;
CREATE MACRO f16(b) AS
    (CASE WHEN b < 1024 THEN b::FLOAT * 2 ELSE (1024 + (b & 1023))::FLOAT * (1 << (b >> 10)) END
     * 2.98023223876953125e-08)::FLOAT;

-- Images, numbered through the file in the order in which they were begun. done: whole, with all that was recorded.
CREATE VIEW images AS
SELECT row_number() OVER (ORDER BY s.run_id, s.sample) - 1 AS image, s.run_id, s.sample, s.prompt, s.negative, s.seed,
       r.method, r.model, s.image_sha256 IS NOT NULL AS done, s.image_sha256, s.image AS file
FROM samples s JOIN runs r USING (run_id);

CREATE VIEW words AS
SELECT run_id, sample, branch, word_idx, any_value(word) AS word, count(*) AS pieces, list(token ORDER BY token) AS tokens,
       bool_or(is_target) AS is_target, bool_or(is_content) AS is_content, bool_and(is_kept) AS is_kept
FROM tokens WHERE word_idx IS NOT NULL GROUP BY run_id, sample, branch, word_idx;

-- Every map, decoded, beside the names of what it belongs to; h, w: its size. Decoded last, so only those asked for.
CREATE VIEW attn AS
SELECT m.* EXCLUDE (low, level, q, bits, map),
       CASE WHEN m.q IS NOT NULL THEN list_transform(m.q, lambda v: deq(m.low, m.level, v))
            WHEN m.bits IS NOT NULL THEN list_transform(m.bits, lambda b: f16(b)) ELSE m.map END AS map,
       l.path, l.map_h AS h, l.map_w AS w, c.kind AS call_kind, c.step, c.timestep, t.piece, t.word, t.word_idx, t.kind,
       t.is_target
FROM (SELECT * EXCLUDE (step), step AS level FROM maps
      UNION ALL BY NAME FROM maps_f16 UNION ALL BY NAME FROM maps_f32) m
JOIN layers l USING (run_id, layer) JOIN calls c USING (run_id, sample, call)
LEFT JOIN tokens t USING (run_id, sample, branch, token);

CREATE VIEW stats AS
SELECT s.* EXCLUDE (word_idx), l.path, l.block, l.h, l.w, c.kind AS call_kind, c.step, c.timestep, t.piece,
       coalesce(t.word, w.word) AS word, coalesce(s.word_idx, t.word_idx) AS word_idx,
       s.word_idx IS NOT NULL AS whole_word, coalesce(t.kind, 'word'::token_kind) AS kind,
       coalesce(t.is_target, w.is_target) AS is_target, coalesce(t.is_content, w.is_content) AS is_content
FROM head_stats s JOIN layers l USING (run_id, layer) JOIN calls c USING (run_id, sample, call)
LEFT JOIN tokens t USING (run_id, sample, branch, token)
LEFT JOIN words w ON w.run_id = s.run_id AND w.sample = s.sample AND w.branch = s.branch AND w.word_idx = s.word_idx;

-- What each token and each whole word got at a step, averaged over heads and layers (sampling passes only): share, its
-- part of a pixel's attention; p90, the 0.9-quantile over the pixels; entropy of the map in nats. label names the row:
-- the word, or [start], [end], [padding], [image]. Rows of whole words have a word_idx; pieces of a split word none.
CREATE VIEW token_steps AS
WITH means AS (
    SELECT s.run_id, s.sample, s.branch, s.phase, s.call, c.step, s.token, s.word_idx, avg(s.mean) AS share,
           avg(s.p90) AS p90, avg(s.vmax) AS vmax, avg(s.entropy) AS entropy
    FROM head_stats s JOIN calls c USING (run_id, sample, call) WHERE c.kind = 'sample'
    GROUP BY s.run_id, s.sample, s.branch, s.phase, s.call, c.step, s.token, s.word_idx
)
SELECT m.run_id, m.sample, m.branch, m.phase, m.call, m.step, m.token, m.word_idx,
       coalesce(w.word, CASE t.kind WHEN 'sos' THEN '[start]' WHEN 'eos' THEN '[end]' ELSE t.piece END) AS label,
       coalesce(t.kind, 'word'::token_kind) AS kind, m.share, m.p90, m.vmax, m.entropy
FROM means m LEFT JOIN tokens t USING (run_id, sample, branch, token)
LEFT JOIN words w ON w.run_id = m.run_id AND w.sample = m.sample AND w.branch = m.branch AND w.word_idx = m.word_idx;

-- The start token's part of a pixel's attention, by layer and step.
CREATE VIEW start_share AS
SELECT s.run_id, s.sample, s.branch, s.phase, s.call, c.step, s.layer, l.path, avg(s.mean::DOUBLE) AS share
FROM head_stats s JOIN tokens t USING (run_id, sample, branch, token) JOIN calls c USING (run_id, sample, call)
JOIN layers l USING (run_id, layer) WHERE t.kind = 'sos' AND c.kind = 'sample'
GROUP BY s.run_id, s.sample, s.branch, s.phase, s.call, c.step, s.layer, l.path;

-- Dominance of each compared word (the targets; all content words where there are none), one row per image, phase,
-- call, layer and word: m = mean over heads of the word's 0.9-quantile, share = m / sum of m. Sampling passes only.
CREATE VIEW dominance AS
WITH compared AS (
    SELECT run_id, sample, word_idx, word FROM words WHERE branch = 'cond'
    QUALIFY CASE WHEN bool_or(is_target) OVER (PARTITION BY run_id, sample) THEN is_target ELSE is_content END
), heads AS (
    SELECT s.run_id, s.sample, s.phase, s.call, c.step, s.layer, s.word_idx, avg(s.p90::DOUBLE) AS m
    FROM head_stats s JOIN calls c USING (run_id, sample, call)
    WHERE s.branch = 'cond' AND s.word_idx IS NOT NULL AND c.kind = 'sample' GROUP BY ALL
), together AS ( -- two lists of one order, taken apart again below: a window over the words costs more
    SELECT run_id, sample, phase, call, step, layer, sum(m) AS total, list(word_idx) AS word_idx, list(m) AS m
    FROM heads SEMI JOIN compared USING (run_id, sample, word_idx) GROUP BY run_id, sample, phase, call, step, layer
), shares AS (
    SELECT * EXCLUDE (word_idx, m), unnest(word_idx) AS word_idx, unnest(m) AS m FROM together
)
SELECT s.run_id, s.sample, s.phase, s.call, s.step, s.layer, l.path, s.word_idx, t.word, s.m, s.m / s.total AS share
FROM shares s JOIN compared t USING (run_id, sample, word_idx) JOIN layers l USING (run_id, layer);

CREATE VIEW dominance_ratio AS
SELECT run_id, sample, phase, call, step, layer, path, max(share) / min(share) AS ratio, arg_max(word, share) AS dominant,
       count(*) AS words
FROM dominance GROUP BY run_id, sample, phase, call, step, layer, path;

-- Whether each target was found in an image, under each reading of a detection protocol: protocol is the reading's name.
-- Verdicts that were given by hand (metric 'found') stand beside them. against: the targets that were asked together.
CREATE VIEW verdicts AS
SELECT s.image_sha256, r.name AS protocol, s.against, s.target, s.value AS score, s.value > r.threshold AS found, s.query,
       s.box
FROM scores s JOIN readings r ON r.protocol = s.protocol AND s.metric = 'detection_' || r.assignment
UNION ALL
SELECT image_sha256, protocol, against, target, NULL, value > 0.5, NULL, NULL FROM scores WHERE metric = 'found';

-- The same at a threshold and an assignment of one's own.
CREATE MACRO found_at(at_threshold, by_assignment := 'argmax') AS TABLE
SELECT image_sha256, protocol, against, bool_and(value > at_threshold) AS found
FROM scores WHERE metric = 'detection_' || by_assignment GROUP BY image_sha256, protocol, against;

-- Whether all targets of a traced image were found, by reading.
CREATE VIEW outcomes AS
WITH asked AS (
    SELECT run_id, sample, image_sha256,
           array_to_string(list_sort(list_transform(from_json(targets, '["JSON"]'), lambda t: t->>'text')), ', ') AS against
    FROM samples
)
SELECT a.run_id, a.sample, v.protocol, bool_and(v.found) AS found
FROM asked a JOIN verdicts v USING (image_sha256) WHERE v.against = a.against OR v.target = ''
GROUP BY a.run_id, a.sample, v.protocol;

-- A value per scored picture and metric: detection_rate (1 where all its targets were found, by reading), clip_cos with
-- its own prompt, clip_min_half with the half that it shows less of, lpips or lpips-tiny to `compared_with`'s picture of
-- the same prompt and seed, owl-count and its like with its own metadata.
CREATE VIEW picture_values AS
SELECT p.path, p.method, p.prompt_id, p.prompt, p.seed, p.tag, v.protocol, 'detection_rate' AS metric,
       bool_and(v.found)::DOUBLE AS value, NULL AS compared_with
FROM pictures p JOIN verdicts v ON v.image_sha256 = p.image_sha256
WHERE v.against = array_to_string(list_sort(p.targets), ', ') AND len(p.targets) > 0
GROUP BY p.path, p.method, p.prompt_id, p.prompt, p.seed, p.tag, v.protocol
UNION ALL
SELECT p.path, p.method, p.prompt_id, p.prompt, p.seed, p.tag, s.protocol,
       CASE s.metric WHEN 'clip_half' THEN 'clip_min_half' ELSE s.metric END AS metric, min(s.value), NULL
FROM pictures p JOIN scores s ON s.image_sha256 = p.image_sha256 AND s.against = p.prompt
WHERE s.metric IN ('clip_cos', 'clip_half')
GROUP BY p.path, p.method, p.prompt_id, p.prompt, p.seed, p.tag, s.protocol, s.metric
UNION ALL
SELECT p.path, p.method, p.prompt_id, p.prompt, p.seed, p.tag, s.protocol, s.metric, s.value, NULL
FROM pictures p JOIN scores s ON s.image_sha256 = p.image_sha256 AND s.against = p.metadata::VARCHAR
WHERE s.metric LIKE 'owl-%'
UNION ALL
SELECT p.path, p.method, p.prompt_id, p.prompt, p.seed, p.tag, s.protocol, s.metric, s.value, b.method
FROM pictures p JOIN pictures b ON b.prompt = p.prompt AND b.seed IS NOT DISTINCT FROM p.seed AND b.method <> p.method
JOIN scores s ON s.image_sha256 = p.image_sha256 AND s.against = b.image_sha256
WHERE s.metric IN ('lpips', 'lpips-tiny');

-- The dominance ratio of the images in which something is missing beside that of the others.
CREATE VIEW dominance_by_outcome AS
SELECT o.protocol, r.model, r.method, d.phase, d.step, d.layer, d.path, o.found, count(*) AS images,
       avg(d.ratio) AS mean_ratio, median(d.ratio) AS median_ratio
FROM dominance_ratio d JOIN outcomes o USING (run_id, sample) JOIN runs r USING (run_id) GROUP BY ALL;

-- A word's map at a step, the mean over heads and over the layers whose maps have this height; its pieces are summed.
-- img: number in `images`. w: the word as the prompt writes it; of one that comes twice, the first. Returns one row, or
-- none where nothing was recorded; map is row-major.
CREATE MACRO word_map(img, w, at_step, height, in_phase := 'original', in_branch := 'cond') AS TABLE
WITH pieces AS (
    SELECT i.run_id, i.sample, t.branch, t.token FROM images i JOIN tokens t USING (run_id, sample)
    WHERE i.image = img AND t.branch = in_branch AND lower(t.word) = lower(w)
    QUALIFY t.word_idx = min(t.word_idx) OVER ()
), found AS (
    SELECT a.layer, a.token, a.h, a.w, a.map FROM attn a JOIN pieces USING (run_id, sample, branch, token)
    WHERE a.phase = in_phase AND a.step = at_step AND a.h = height AND a.call_kind = 'sample'
), pixels AS (
    SELECT pixel, avg(v) * (SELECT count(DISTINCT token) FROM found) AS v
    FROM (SELECT unnest(map) AS v, generate_subscripts(map, 1) AS pixel FROM found) GROUP BY pixel
)
SELECT any_value(f.h) AS h, any_value(f.w) AS w, count(DISTINCT f.layer) AS layers,
       (SELECT list(v::FLOAT ORDER BY pixel) FROM pixels) AS map
FROM found f HAVING count(*) > 0;

-- What must be there (samples x branches x phases x calls x layers, each with heads x tokens rows) against what is.
-- faults: layers of a pass whose rows are not each there exactly once. That they are not only as many is seen by the
-- sum of a hash of each one's head and token, which costs a sixth of counting the different ones.
CREATE VIEW completeness AS
WITH asked AS (
    SELECT run_id, unnest(from_json(capture->'branches', '["VARCHAR"]'))::branch AS branch
    FROM runs
), passes AS (
    SELECT c.run_id, c.sample, a.branch, 'original'::phase AS phase, c.call, l.layer
    FROM calls c JOIN layers l USING (run_id) JOIN asked a USING (run_id) WHERE list_contains(c.halves, a.branch)
    UNION ALL
    SELECT c.run_id, c.sample, a.branch, 'edited'::phase, c.call, c.layer
    FROM (SELECT run_id, sample, call, unnest(edited) AS layer FROM calls) c JOIN layers l USING (run_id, layer)
    JOIN asked a USING (run_id) WHERE a.branch = 'cond'
), heads AS (
    SELECT run_id, layer, 'head_stats' AS "table", unnest(range(heads)) AS head FROM layers
    UNION ALL
    SELECT run_id, l.layer, CASE r.capture->>'precision' WHEN 'uint8' THEN 'maps' WHEN 'float16' THEN 'maps_f16'
                                                         WHEN 'float32' THEN 'maps_f32' END,
           unnest(CASE r.capture->>'heads' WHEN 'all' THEN range(l.heads) WHEN 'mean' THEN [0]
                  ELSE list_filter(from_json(r.capture->'heads', '["BIGINT"]'), lambda head: head < l.heads) END)
    FROM layers l JOIN runs r USING (run_id) WHERE r.capture->>'precision' <> 'none'
), columns AS (
    SELECT run_id, sample, branch, token::INTEGER AS "column", false AS split FROM tokens WHERE is_kept
    UNION ALL
    SELECT run_id, sample, branch, 65536 + word_idx, true FROM words WHERE pieces > 1 AND is_kept
), wanted AS (
    SELECT h."table", run_id, c.sample, c.branch, h.layer, count(*) AS n,
           sum(hash(h.head * 131072 + c."column")) AS hashes
    FROM heads h JOIN columns c USING (run_id) WHERE h."table" = 'head_stats' OR NOT c.split GROUP BY ALL
), expected AS (
    SELECT w."table", p.*, w.n, w.hashes FROM passes p JOIN wanted w USING (run_id, sample, branch, layer)
), rows AS (
    SELECT 'head_stats' AS "table", run_id, sample, branch, phase, call, layer, head, token, word_idx FROM head_stats
    UNION ALL BY NAME SELECT 'maps' AS "table", * EXCLUDE (q, low, step) FROM maps
    UNION ALL BY NAME SELECT 'maps_f16' AS "table", * EXCLUDE (bits) FROM maps_f16
    UNION ALL BY NAME SELECT 'maps_f32' AS "table", * EXCLUDE (map) FROM maps_f32
), found AS (
    SELECT "table", run_id, sample, branch, phase, call, layer, count(*) AS n,
           sum(hash(coalesce(head, 0)::BIGINT * 131072 + coalesce(token, 65536 + word_idx))) AS hashes
    FROM rows GROUP BY ALL
)
SELECT run_id, "table", sum(coalesce(e.n, 0))::UBIGINT AS expected, sum(coalesce(f.n, 0))::UBIGINT AS rows,
       count(*) FILTER ((e.n, e.hashes) IS DISTINCT FROM (f.n, f.hashes)) AS faults, faults = 0 AS whole
FROM expected e FULL JOIN found f USING ("table", run_id, sample, branch, phase, call, layer)
GROUP BY run_id, "table";
