-- The trace: who was generated, with which words, through which passes, and where every head looked.
-- One file per experiment, many runs in it. The big tables carry no key: an index would cost more than the rows do
-- (+119 % CPU, +61 % bytes); the view `completeness` checks what a key would have promised.

CREATE TYPE branch     AS ENUM ('cond', 'uncond');
CREATE TYPE phase      AS ENUM ('original', 'edited');
CREATE TYPE token_kind AS ENUM ('sos', 'word', 'eos', 'pad', 'padsum', 'image');
CREATE TYPE call_kind  AS ENUM ('sample', 'guidance', 'refine');

CREATE TABLE meta (key VARCHAR PRIMARY KEY, value VARCHAR NOT NULL);

CREATE TABLE runs (
    run_id UINTEGER PRIMARY KEY, spec_hash VARCHAR, created_at TIMESTAMP /* UTC */, model VARCHAR, pipeline VARCHAR,
    scheduler VARCHAR, n_steps USMALLINT, guidance FLOAT, height USMALLINT, width USMALLINT, dtype VARCHAR,
    method VARCHAR, method_params JSON, capture JSON, versions JSON,
    status VARCHAR /* running, done or failed */);

-- targets: [{"text": "cat", "positions": [2]}, ...]; image: path of the file, which stays outside. image_sha256 is
-- set once everything that was recorded of the image is on the disk.
CREATE TABLE samples (
    run_id UINTEGER, sample USMALLINT, prompt_id VARCHAR, prompt VARCHAR, negative VARCHAR, seed BIGINT, targets JSON,
    image_sha256 VARCHAR, image VARCHAR, PRIMARY KEY (run_id, sample));

-- The whole sequence, and after it the sums that are recorded beside its tokens: 'padsum', the padding, and 'image',
-- what a pixel of joint attention gives to the image. encoder: where a model has several in one sequence. is_content:
-- a word, and neither an article nor a joiner (`JOINERS` in tracer/statistics.py). is_kept: there are rows of it.
CREATE TABLE tokens (
    run_id UINTEGER, sample USMALLINT, branch branch, token USMALLINT, token_id INTEGER, piece VARCHAR, word VARCHAR,
    word_idx SMALLINT, kind token_kind, encoder VARCHAR, is_target BOOLEAN, is_content BOOLEAN, is_kept BOOLEAN);

-- layer: the site's place in the order of execution, those that are not recorded counted too. h, w: of the attention;
-- map_h, map_w: of the maps that are kept, map_heads of them for each token.
CREATE TABLE layers (
    run_id UINTEGER, layer USMALLINT, path VARCHAR, block VARCHAR, block_idx UTINYINT, h USMALLINT, w USMALLINT,
    heads USMALLINT, map_h USMALLINT, map_w USMALLINT, map_heads USMALLINT, PRIMARY KEY (run_id, layer));

-- A pass of the model, for one sample. halves: what its batch held. edited: the layers whose probabilities an edit
-- replaced. wall_ms: from the pass's announcement to its last attention.
CREATE TABLE calls (
    run_id UINTEGER, sample USMALLINT, call USMALLINT, kind call_kind, halves branch[], step USMALLINT,
    timestep FLOAT, sigma FLOAT, wall_ms FLOAT, edited USMALLINT[], PRIMARY KEY (run_id, sample, call));

-- Statistics of the live float32 map; tracer/statistics.py says what each one is. word_idx is set on exactly the
-- rows that show a whole word: the token's own row, or, where a word has several pieces, an extra row on the
-- pieces' sum, whose token is NULL (quantiles do not add).
CREATE TABLE head_stats (
    run_id UINTEGER, sample USMALLINT, branch branch, phase phase, call USMALLINT, layer USMALLINT, head USMALLINT,
    token USMALLINT, word_idx SMALLINT, mass FLOAT, mean FLOAT, std FLOAT, vmax FLOAT, p50 FLOAT, p90 FLOAT, p99 FLOAT,
    entropy FLOAT, cx FLOAT, cy FLOAT, hist UINTEGER[]);

-- Maps, row-major map_h*map_w, in the form that the run's capture asked for; head is NULL for the mean of all heads.
-- As 64 levels of the square root: v = (low + step * q)^2, off by at most step * sqrt(v) + step^2 / 4.
CREATE TABLE maps (
    run_id UINTEGER, sample USMALLINT, branch branch, phase phase, call USMALLINT, layer USMALLINT, head USMALLINT,
    token USMALLINT, low FLOAT, step FLOAT, q UTINYINT[]);
-- As the bits of a half-precision number, which DuckDB does not have; exact.
CREATE TABLE maps_f16 (
    run_id UINTEGER, sample USMALLINT, branch branch, phase phase, call USMALLINT, layer USMALLINT, head USMALLINT,
    token USMALLINT, bits USMALLINT[]);
CREATE TABLE maps_f32 (
    run_id UINTEGER, sample USMALLINT, branch branch, phase phase, call USMALLINT, layer USMALLINT, head USMALLINT,
    token USMALLINT, map FLOAT[]);

-- One optimisation of a regulated run. distance: ||A' - A||; kept: the iteration whose edit was kept.
CREATE TABLE solves (
    run_id UINTEGER, sample USMALLINT, call USMALLINT, layer USMALLINT, head USMALLINT, loss_start FLOAT,
    loss_kept FLOAT, coverage FLOAT, proportion FLOAT, deviation FLOAT, distance FLOAT, kept USMALLINT);

-- One number about one image; what is there stays. target: '' where the whole image is meant. against: what the image was
-- held against: its prompt (CLIP), another image's SHA-256 (LPIPS), the targets that were asked for together (detection:
-- sorted, joined by ', '), else ''. Detections have one row per assignment, with the query and the box (left, top, right,
-- bottom, in pixels); a threshold is a matter of reading them.
CREATE TABLE scores (
    image_sha256 VARCHAR, protocol VARCHAR, metric VARCHAR, target VARCHAR, against VARCHAR, value DOUBLE,
    query VARCHAR, box FLOAT[], PRIMARY KEY (image_sha256, protocol, metric, target, against));

-- What a protocol stands for: a score without it means nothing. protocol: its fingerprint, as scores carry it. facts:
-- all that the fingerprint is a hash of. versions: the libraries, in full, of the last time it was used.
CREATE TABLE protocols (protocol VARCHAR PRIMARY KEY, kind VARCHAR, world VARCHAR, facts JSON, versions JSON);
-- How the detections of a protocol are read; name: as tables print it.
CREATE TABLE readings (name VARCHAR PRIMARY KEY, protocol VARCHAR, threshold DOUBLE, assignment VARCHAR);

-- One number about a set of images, known by the hash of its images' sorted SHA-256. low, high: of its interval.
CREATE TABLE set_scores (
    set_sha256 VARCHAR, reference_sha256 VARCHAR, protocol VARCHAR, metric VARCHAR, value DOUBLE, low DOUBLE, high DOUBLE,
    n UINTEGER, n_reference UINTEGER, warnings VARCHAR[],
    PRIMARY KEY (set_sha256, reference_sha256, protocol, metric));

-- What networks made of images (item: SHA-256) and texts (item: the text), for scores that are asked for later.
CREATE TABLE embeddings (item VARCHAR, protocol VARCHAR, vector FLOAT[], PRIMARY KEY (item, protocol));

-- Image files that were scored, as a method's or as reference images. path: from this file's folder where it lies below it. bytes, changed_ns: a file that has
-- the same ones is not read again. error: why the file could not be read; notes: what was done to make it 8-bit RGB.
CREATE TABLE pictures (
    path VARCHAR, method VARCHAR, prompt_id VARCHAR, prompt VARCHAR, seed BIGINT, targets VARCHAR[], tag VARCHAR,
    metadata JSON, bytes UBIGINT, changed_ns BIGINT, width UINTEGER, height UINTEGER, image_sha256 VARCHAR,
    notes VARCHAR[], error VARCHAR, PRIMARY KEY (path, method));
