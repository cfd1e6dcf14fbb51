-- The questions that a trace is asked, as views and macros that lie in the file itself: every client has them.
-- A table macro finds its tables only in the current database: with several files attached, say USE first.

-- A map's value from its code, and from the bits of a half-precision number.
CREATE MACRO deq(low, step, q) AS ((low + step * q) * (low + step * q))::FLOAT;
CREATE MACRO f16(b) AS
    (if(b < 1024, b::FLOAT * 2, (1024 + (b & 1023))::FLOAT * (1 << (b >> 10))) * 2.98023223876953125e-08)::FLOAT;

-- Images, numbered through the file in the order in which they were begun. done: whole, with all that was recorded.
CREATE VIEW images AS
SELECT row_number() OVER (ORDER BY s.run_id, s.sample) - 1 AS image, s.run_id, s.sample, s.prompt, s.negative, s.seed,
       r.method, r.model, s.image_sha256 IS NOT NULL AS done, s.image_sha256, s.image AS file
FROM samples s JOIN runs r USING (run_id);

CREATE VIEW words AS
SELECT run_id, sample, branch, word_idx, any_value(word) AS word, count(*) AS pieces, list(token ORDER BY token) AS tokens,
       bool_or(is_target) AS is_target, bool_or(is_content) AS is_content, bool_and(is_kept) AS is_kept
FROM tokens WHERE word_idx IS NOT NULL GROUP BY run_id, sample, branch, word_idx;

-- Every map, decoded, beside the names of what it belongs to; h, w: its size.
CREATE VIEW attn AS
SELECT m.*, l.path, l.map_h AS h, l.map_w AS w, c.kind AS call_kind, c.step, c.timestep, t.piece, t.word, t.word_idx, t.kind,
       t.is_target
FROM (SELECT * EXCLUDE (q, low, step), list_transform(q, lambda v: deq(low, step, v)) AS map FROM maps
      UNION ALL BY NAME SELECT * EXCLUDE (bits), list_transform(bits, lambda b: f16(b)) AS map FROM maps_f16
      UNION ALL BY NAME SELECT * FROM maps_f32) m
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
    SELECT run_id, sample, branch, phase, call, token, word_idx, avg(mean) AS share, avg(p90) AS p90,
           avg(vmax) AS vmax, avg(entropy) AS entropy
    FROM head_stats GROUP BY run_id, sample, branch, phase, call, token, word_idx
)
SELECT m.run_id, m.sample, m.branch, m.phase, m.call, c.step, m.token, m.word_idx,
       coalesce(w.word, CASE t.kind WHEN 'sos' THEN '[start]' WHEN 'eos' THEN '[end]' ELSE t.piece END) AS label,
       coalesce(t.kind, 'word'::token_kind) AS kind, m.share, m.p90, m.vmax, m.entropy
FROM means m JOIN calls c USING (run_id, sample, call)
LEFT JOIN tokens t USING (run_id, sample, branch, token)
LEFT JOIN words w ON w.run_id = m.run_id AND w.sample = m.sample AND w.branch = m.branch AND w.word_idx = m.word_idx
WHERE c.kind = 'sample';

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
    SELECT run_id, sample, phase, call, layer, word_idx, avg(p90::DOUBLE) AS m FROM head_stats
    WHERE branch = 'cond' AND word_idx IS NOT NULL GROUP BY ALL
)
SELECT m.run_id, m.sample, m.phase, m.call, c.step, m.layer, l.path, m.word_idx, t.word, m.m,
       m.m / sum(m.m) OVER (PARTITION BY m.run_id, m.sample, m.phase, m.call, m.layer) AS share
FROM heads m JOIN compared t USING (run_id, sample, word_idx) JOIN layers l USING (run_id, layer)
JOIN calls c USING (run_id, sample, call) WHERE c.kind = 'sample';

CREATE VIEW dominance_ratio AS
SELECT run_id, sample, phase, call, step, layer, path, max(share) / min(share) AS ratio, arg_max(word, share) AS dominant,
       count(*) AS words
FROM dominance GROUP BY run_id, sample, phase, call, step, layer, path;

-- Whether every target was found in an image, by protocol of the detector.
CREATE VIEW outcomes AS
SELECT s.run_id, s.sample, f.protocol, f.value > 0.5 AS found
FROM scores f JOIN samples s USING (image_sha256) WHERE f.metric = 'found' AND f.target = '';

-- The dominance ratio of the images in which something is missing beside that of the others.
CREATE VIEW dominance_by_outcome AS
SELECT o.protocol, r.model, r.method, d.phase, d.step, d.layer, d.path, o.found, count(*) AS images,
       avg(d.ratio) AS mean_ratio, median(d.ratio) AS median_ratio
FROM dominance_ratio d JOIN outcomes o USING (run_id, sample) JOIN runs r USING (run_id) GROUP BY ALL;

-- A word's map at a step, the mean over heads and over the layers whose maps have this height; its pieces are summed.
-- img: number in `images`. w: the word as the prompt writes it, or another token's label ('[start]' and its like are
-- of `token_steps`). Returns one row; map is row-major.
CREATE MACRO word_map(img, w, at_step, height, in_phase := 'original', in_branch := 'cond') AS TABLE
WITH picked AS (
    SELECT i.run_id, i.sample, t.token FROM images i JOIN tokens t USING (run_id, sample)
    WHERE i.image = img AND t.branch = in_branch AND lower(t.word) = lower(w)
      AND t.word_idx = (SELECT min(u.word_idx) FROM tokens u WHERE (u.run_id, u.sample, u.branch) = (i.run_id, i.sample, t.branch)
                        AND lower(u.word) = lower(w))
), found AS (
    SELECT m.layer, m.head, m.map, m.h, m.w
    FROM attn m SEMI JOIN picked p ON (m.run_id, m.sample, m.token) = (p.run_id, p.sample, p.token)
    WHERE m.run_id = (SELECT any_value(run_id) FROM picked) AND m.sample = (SELECT any_value(sample) FROM picked)
      AND m.branch = in_branch AND m.phase = in_phase AND m.step = at_step AND m.h = height
      AND m.call_kind = 'sample'
), pixels AS (
    SELECT unnest(map) AS v, generate_subscripts(map, 1) AS pixel FROM found
), summed AS (
    SELECT pixel, sum(v) / (SELECT count(DISTINCT (layer, head)) FROM (SELECT layer, coalesce(head, 0) AS head FROM found)) AS v
    FROM pixels GROUP BY pixel
)
SELECT any_value(f.h) AS h, any_value(f.w) AS w, count(DISTINCT f.layer) AS layers,
       (SELECT list(v::FLOAT ORDER BY pixel) FROM summed) AS map
FROM found f HAVING count(*) > 0;

-- What must be there (samples x branches x phases x calls x layers, each with heads x tokens rows) against what is.
-- faults: layers of a pass whose rows are not each there exactly once.
CREATE VIEW completeness AS
WITH asked AS (
    SELECT run_id, unnest(from_json(capture->'branches', '["VARCHAR"]'))::branch AS branch,
           CASE capture->>'precision' WHEN 'uint8' THEN 'maps' WHEN 'float16' THEN 'maps_f16'
                                      WHEN 'float32' THEN 'maps_f32' END AS maps
    FROM runs
), passes AS (
    SELECT c.run_id, c.sample, a.branch, 'original'::phase AS phase, c.call, a.maps, l.layer, l.heads, l.map_heads
    FROM calls c JOIN layers l USING (run_id) JOIN asked a USING (run_id) WHERE list_contains(c.halves, a.branch)
    UNION ALL
    SELECT c.run_id, c.sample, 'cond', 'edited', c.call, a.maps, l.layer, l.heads, l.map_heads
    FROM (SELECT run_id, sample, call, unnest(edited) AS layer FROM calls) c JOIN layers l USING (run_id, layer)
    JOIN asked a USING (run_id) WHERE a.branch = 'cond'
), sizes AS (
    SELECT t.run_id, t.sample, t.branch, count(*) FILTER (t.is_kept) AS tokens, any_value(w.split) AS split
    FROM tokens t LEFT JOIN (
        SELECT run_id, sample, branch, count(*) AS split FROM words WHERE pieces > 1 AND is_kept GROUP BY ALL
    ) w USING (run_id, sample, branch) GROUP BY t.run_id, t.sample, t.branch
), expected AS (
    SELECT p.* EXCLUDE (heads, map_heads, maps), 'head_stats' AS "table",
           p.heads * (s.tokens + coalesce(s.split, 0)) AS n
    FROM passes p JOIN sizes s USING (run_id, sample, branch)
    UNION ALL BY NAME
    SELECT p.* EXCLUDE (heads, map_heads, maps), p.maps AS "table", p.map_heads * s.tokens AS n
    FROM passes p JOIN sizes s USING (run_id, sample, branch) WHERE p.maps IS NOT NULL
), rows AS (
    SELECT 'head_stats' AS "table", run_id, sample, branch, phase, call, layer, head, token, word_idx FROM head_stats
    UNION ALL BY NAME SELECT 'maps' AS "table", * EXCLUDE (q, low, step) FROM maps
    UNION ALL BY NAME SELECT 'maps_f16' AS "table", * EXCLUDE (bits) FROM maps_f16
    UNION ALL BY NAME SELECT 'maps_f32' AS "table", * EXCLUDE (map) FROM maps_f32
), found AS (
    SELECT r."table", r.run_id, r.sample, r.branch, r.phase, r.call, r.layer, count(*) AS n,
           count(DISTINCT coalesce(r.head, 0) * 131072 + coalesce(r.token, 65536 + r.word_idx))
               FILTER (coalesce(r.head, 0) < l.heads AND (r.token IS NULL OR t.is_kept)) AS n_distinct
    FROM rows r LEFT JOIN layers l USING (run_id, layer) LEFT JOIN tokens t USING (run_id, sample, branch, token)
    GROUP BY ALL
)
SELECT run_id, "table", sum(coalesce(e.n, 0))::UBIGINT AS expected, sum(coalesce(f.n, 0))::UBIGINT AS rows,
       count(*) FILTER (coalesce(e.n, 0) IS DISTINCT FROM coalesce(f.n, 0) OR coalesce(f.n_distinct, 0) IS DISTINCT FROM coalesce(e.n, 0)) AS faults, faults = 0 AS whole
FROM (FROM expected WHERE n > 0) e FULL JOIN found f USING ("table", run_id, sample, branch, phase, call, layer)
GROUP BY run_id, "table";
