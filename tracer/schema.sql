-- The trace: who was generated, with which words, through which passes, and where every head looked.
-- One file per experiment, many runs in it. The two big tables carry no key: an index would cost more than
-- the rows do (+119 % CPU, +61 % bytes); the view `completeness` checks what a key would have promised.

CREATE TYPE branch     AS ENUM ('cond', 'uncond');
CREATE TYPE phase      AS ENUM ('original', 'edited');
CREATE TYPE token_kind AS ENUM ('sos', 'word', 'eos', 'pad', 'padsum');
CREATE TYPE call_kind  AS ENUM ('sample', 'guidance', 'refine');

CREATE TABLE meta (key VARCHAR PRIMARY KEY, value VARCHAR NOT NULL);

CREATE TABLE runs (
    run_id UINTEGER PRIMARY KEY, spec_hash VARCHAR, created_at TIMESTAMP /* UTC */, model VARCHAR, pipeline VARCHAR,
    scheduler VARCHAR, n_steps USMALLINT, guidance FLOAT, height USMALLINT, width USMALLINT, dtype VARCHAR,
    method VARCHAR, method_params JSON, capture JSON, versions JSON,
    status VARCHAR /* running, done or failed */, dropped_maps UBIGINT);

-- targets: [{"text": "cat", "positions": [2]}, ...]; image: path of the file, which stays outside
CREATE TABLE samples (
    run_id UINTEGER, sample USMALLINT, prompt_id VARCHAR, prompt VARCHAR, negative VARCHAR, seed BIGINT, targets JSON,
    image_sha256 VARCHAR, image VARCHAR, PRIMARY KEY (run_id, sample));

-- is_content: a word, and neither an article nor a joiner (`JOINERS` in tracer/statistics.py is the list)
CREATE TABLE tokens (
    run_id UINTEGER, sample USMALLINT, branch branch, token USMALLINT, token_id INTEGER, piece VARCHAR, word VARCHAR,
    word_idx SMALLINT, kind token_kind, is_target BOOLEAN, is_content BOOLEAN);

CREATE TABLE layers (
    run_id UINTEGER, layer USMALLINT /* execution order */, path VARCHAR, block VARCHAR, block_idx UTINYINT,
    h USMALLINT, w USMALLINT, heads USMALLINT, PRIMARY KEY (run_id, layer));

-- A pass of the model, for one sample. guided: an unconditional half came with it. edited: the layers whose
-- probabilities an edit replaced. wall_ms: from the pass's announcement to its last attention.
CREATE TABLE calls (
    run_id UINTEGER, sample USMALLINT, call USMALLINT, kind call_kind, guided BOOLEAN, step USMALLINT, timestep FLOAT,
    sigma FLOAT, wall_ms FLOAT, edited USMALLINT[], PRIMARY KEY (run_id, sample, call));

-- Statistics of the live float32 map; tracer/statistics.py says what each one is. word_idx is set on exactly the
-- rows that show a whole word: the token's own row, or, where a word has several pieces, an extra row on the
-- pieces' sum, whose token is NULL (quantiles do not add).
CREATE TABLE head_stats (
    run_id UINTEGER, sample USMALLINT, branch branch, phase phase, call USMALLINT, layer USMALLINT, head USMALLINT,
    token USMALLINT, word_idx SMALLINT, mass FLOAT, mean FLOAT, std FLOAT, vmax FLOAT, p50 FLOAT, p90 FLOAT, p99 FLOAT,
    entropy FLOAT, cx FLOAT, cy FLOAT, hist UINTEGER[]);

-- Maps, row-major h*w: as round(255 * sqrt(v)), off by at most 0.00392, or exactly.
CREATE TABLE maps (
    run_id UINTEGER, sample USMALLINT, branch branch, phase phase, call USMALLINT, layer USMALLINT, head USMALLINT,
    token USMALLINT, q UTINYINT[]);
CREATE TABLE maps_f32 (
    run_id UINTEGER, sample USMALLINT, branch branch, phase phase, call USMALLINT, layer USMALLINT, head USMALLINT,
    token USMALLINT, map FLOAT[]);

-- One optimisation of a regulated run. distance: ||A' - A||; kept: the iteration whose edit was kept.
CREATE TABLE solves (
    run_id UINTEGER, sample USMALLINT, call USMALLINT, layer USMALLINT, head USMALLINT, loss_start FLOAT,
    loss_kept FLOAT, coverage FLOAT, proportion FLOAT, deviation FLOAT, distance FLOAT, kept USMALLINT);

-- target: the empty string where the metric looks at the whole image
CREATE TABLE scores (
    image_sha256 VARCHAR, protocol VARCHAR, metric VARCHAR, target VARCHAR, value DOUBLE,
    PRIMARY KEY (image_sha256, protocol, metric, target));

CREATE MACRO deq(v) AS ((v::FLOAT * v::FLOAT) / 65025::FLOAT)::FLOAT;

CREATE VIEW words AS
SELECT run_id, sample, branch, word_idx, any_value(word) AS word, count(*) AS pieces,
       bool_or(is_target) AS is_target, bool_or(is_content) AS is_content
FROM tokens WHERE word_idx IS NOT NULL GROUP BY run_id, sample, branch, word_idx;

-- Every map, decoded, beside the names of what it belongs to.
CREATE VIEW attn AS
SELECT m.*, l.path, l.h, l.w, c.kind AS call_kind, c.step, c.timestep, t.piece, t.word, t.word_idx, t.kind, t.is_target
FROM (SELECT * EXCLUDE (q), list_transform(q, lambda v: deq(v)) AS map FROM maps
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

-- What must be there (samples x branches x phases x calls x layers, each with heads x tokens rows) against what is.
-- faults: layers of a pass whose rows are not each there exactly once.
CREATE VIEW completeness AS
WITH passes AS (
    SELECT c.run_id, c.sample, b.branch, 'original'::phase AS phase, c.call, l.layer, l.heads
    FROM calls c JOIN layers l USING (run_id) JOIN (
        SELECT run_id, unnest(from_json(capture->'branches', '["VARCHAR"]'))::branch AS branch FROM runs) b USING (run_id)
    WHERE b.branch = 'cond' OR c.guided
    UNION ALL
    SELECT c.run_id, c.sample, 'cond', 'edited', c.call, l.layer, l.heads
    FROM (SELECT run_id, sample, call, unnest(edited) AS layer FROM calls) c JOIN layers l USING (run_id, layer)
    JOIN runs r USING (run_id) WHERE list_contains(from_json(r.capture->'branches', '["VARCHAR"]'), 'cond')
), sizes AS (
    SELECT t.run_id, t.sample, t.branch, count(*) AS tokens, any_value(w.split) AS split
    FROM tokens t LEFT JOIN (
        SELECT run_id, sample, branch, count(*) AS split FROM words WHERE pieces > 1 GROUP BY ALL
    ) w USING (run_id, sample, branch) GROUP BY t.run_id, t.sample, t.branch
), expected AS (
    SELECT p.* EXCLUDE (heads), k."table", k.heads * (s.tokens + k.words * coalesce(s.split, 0)) AS n
    FROM passes p JOIN sizes s USING (run_id, sample, branch) JOIN runs r USING (run_id),
    LATERAL (SELECT 'head_stats' AS "table", p.heads AS heads, 1 AS words
             UNION ALL SELECT if(r.capture->>'precision' = 'uint8', 'maps', 'maps_f32'), p.heads, 0) k
), rows AS (
    SELECT 'head_stats' AS "table", run_id, sample, branch, phase, call, layer, head, token, word_idx FROM head_stats
    UNION ALL BY NAME SELECT 'maps' AS "table", * EXCLUDE (q) FROM maps
    UNION ALL BY NAME SELECT 'maps_f32' AS "table", * EXCLUDE (map) FROM maps_f32
), found AS (
    SELECT r."table", r.run_id, r.sample, r.branch, r.phase, r.call, r.layer, count(*) AS n,
           count(DISTINCT r.head * 131072 + coalesce(r.token, 65536 + r.word_idx))
               FILTER (r.head < l.heads AND (r.token IS NULL OR t.token IS NOT NULL)) AS n_distinct
    FROM rows r LEFT JOIN layers l USING (run_id, layer) LEFT JOIN tokens t USING (run_id, sample, branch, token)
    GROUP BY ALL
)
SELECT run_id, "table", sum(coalesce(e.n, 0))::UBIGINT AS expected, sum(coalesce(f.n, 0))::UBIGINT AS rows,
       count(*) FILTER (e.n IS DISTINCT FROM f.n OR e.n IS DISTINCT FROM f.n_distinct) AS faults, faults = 0 AS whole
FROM expected e FULL JOIN found f USING ("table", run_id, sample, branch, phase, call, layer)
GROUP BY run_id, "table";
