package api

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"

	"eboot"
)

// Source is a tree to publish. Package ingest makes one from a path.
type Source interface {
	Manifest() *eboot.Manifest
	Times() []int64 // modification times, in the order of the manifest
	// Blobs calls put once for each blob that want asks for.
	// eboot.ErrConflict names a file that changed meanwhile.
	Blobs(ctx context.Context, want func(eboot.Digest) bool, put func(d eboot.Digest, size int64, content io.Reader) error) error
}

// Publish is one publish, from a source to a committed bundle.
type Publish struct {
	Ref        eboot.Ref
	ERTS       []string
	BootScript string
	SysConfig  string
	Channel    string // empty: no channel is moved
	MinCopies  int    // see PublishCommit
	Source     Source
	// Signatures are those of the bundles, by ERTS version.
	Signatures map[string][]eboot.Signature
	// Progress hears of bytes sent, those of Put too, of how many there are to send; may be nil.
	Progress func(sent, total int64)
}

// PublishOutcome is what a publish did.
type PublishOutcome struct {
	PublishResult
	SentBlobs int   `json:"sent_blobs"`
	SentBytes int64 `json:"sent_bytes"`
}

// Publish opens, sends what the server lacks and commits. Repeating it after any
// failure is safe. eboot.ErrConflict: the name is taken by other content.
func (c *Client) Publish(ctx context.Context, p Publish) (PublishOutcome, error) {
	open, err := c.OpenPublish(ctx)
	if err != nil {
		return PublishOutcome{}, err
	}
	defer open.Close()
	return open.Publish(ctx, p)
}

// OpenPublish is a publish that has begun. Blobs may be sent with it while their tree
// is read: Want and Put are for several goroutines at once.
type OpenPublish struct {
	client *Client
	server endpoint // the whole publish stays with it
	path   string
	ctx    context.Context // of the requests that carry blobs
	cancel context.CancelFunc
	done   bool // nothing is left to be dropped

	held   []uint32 // beginnings of digests, sorted
	few    bool     // held is all of them
	mu     sync.Mutex
	wanted map[eboot.Digest]bool
	upload *upload
}

// OpenPublish begins a publish with the first server that answers. It must be closed.
func (c *Client) OpenPublish(ctx context.Context) (*OpenPublish, error) {
	var first error
	for _, e := range c.endpoints {
		o := &OpenPublish{client: c, server: e, wanted: map[eboot.Digest]bool{}}
		err := o.open(ctx)
		if err == nil {
			o.ctx, o.cancel = context.WithCancel(ctx)
			o.startUpload()
			return o, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

func (o *OpenPublish) open(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, o.client.timeout)
	defer cancel()
	response, err := o.server.send(ctx, "POST", "/v1/publishes", nil, nil, nil, false)
	if err != nil {
		return err
	}
	var opened PublishOpened
	if err := decode(response, nil, &opened); err != nil {
		return err
	}
	o.path = "/v1/publishes/" + opened.ID
	o.held, err = parseHeld(opened.Held)
	o.few = opened.Held != nil
	return err
}

// parseHeld reads PublishOpened.Held.
func parseHeld(data []byte) ([]uint32, error) {
	if len(data)%4 != 0 {
		return nil, fmt.Errorf("answer: blobs held in %d bytes, want four for each: %w", len(data), eboot.ErrUnavailable)
	}
	held := make([]uint32, 0, len(data)/4)
	for ; len(data) > 0; data = data[4:] {
		held = append(held, binary.BigEndian.Uint32(data))
	}
	slices.Sort(held)
	return held, nil
}

// startUpload readies the request that carries blobs; it begins with the first of them.
func (o *OpenPublish) startUpload() {
	o.upload = newUpload(func(body io.ReadCloser) error {
		response, err := o.server.send(o.ctx, "PUT", o.path+"/blobs", nil, nil, body, false)
		if err == nil {
			err = decode(response, nil, nil)
		}
		if err != nil {
			return fmt.Errorf("send blobs: %w", err)
		}
		return nil
	})
}

// Want reports, once for each blob, whether the server is known to lack it: then it
// is to be Put. When in doubt it is not; Publish sends it later.
func (o *OpenPublish) Want(d eboot.Digest) bool {
	if _, maybe := slices.BinarySearch(o.held, binary.BigEndian.Uint32(d[:])); maybe || !o.few {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.wanted[d] {
		return false
	}
	o.wanted[d] = true
	return true
}

// Put sends a blob. After an error the publish can only be closed.
func (o *OpenPublish) Put(d eboot.Digest, size int64, content io.Reader) error {
	err := o.upload.put(d, size, content)
	if errors.Is(err, eboot.ErrNotFound) {
		return nil // reading took so long that the server forgot the publish: Publish begins it anew
	}
	return err
}

// Publish waits until everything that was Put has arrived, says what the tree is,
// sends what is still missing and commits. eboot.ErrConflict: the name is taken by
// other content, or a file changed meanwhile.
func (o *OpenPublish) Publish(ctx context.Context, p Publish) (outcome PublishOutcome, err error) {
	var described PublishDescribed
	if err = o.upload.end(); err == nil {
		outcome.SentBlobs, outcome.SentBytes = o.upload.blobs, o.upload.bytes
		described, err = o.describe(ctx, p)
	}
	if errors.Is(err, eboot.ErrNotFound) { // see Put
		if err = o.open(ctx); err == nil {
			described, err = o.describe(ctx, p)
		}
	}
	if err != nil {
		return outcome, err
	}
	if len(described.Missing) > 0 {
		if err := o.sendMissing(p, described.Missing, &outcome); err != nil {
			return outcome, err
		}
	}
	body, err := json.Marshal(PublishCommit{Channel: p.Channel, MinCopies: p.MinCopies, Signatures: p.Signatures})
	if err != nil {
		return outcome, err
	}
	response, err := o.server.send(ctx, "POST", o.path+"/commit", nil, o.client.header(true), bytes.NewReader(body), true)
	if err == nil {
		err = decode(response, nil, &outcome.PublishResult)
	}
	// When the outcome is unknown, what came in may be of a bundle that is visible.
	o.done = err == nil || errors.Is(err, eboot.ErrUnknownOutcome)
	return outcome, err
}

func (o *OpenPublish) describe(ctx context.Context, p Publish) (described PublishDescribed, err error) {
	manifest, times := p.Source.Manifest().Encode(), eboot.EncodeTimes(p.Source.Times())
	line, err := json.Marshal(PublishRequest{
		Name: p.Ref.Name, Version: p.Ref.Version, ERTS: p.ERTS, BootScript: p.BootScript, SysConfig: p.SysConfig,
		ManifestBytes: len(manifest), TimesBytes: len(times),
	})
	if err != nil {
		return described, err
	}
	body := io.MultiReader(bytes.NewReader(append(line, '\n')), bytes.NewReader(manifest), bytes.NewReader(times))
	header := http.Header{"Content-Type": {"application/x-eboot-publish"}}
	response, err := o.server.send(ctx, "PUT", o.path+"/manifest", nil, header, body, false)
	if err != nil {
		return described, err
	}
	return described, decode(response, nil, &described)
}

// sendMissing reads the source again for what was not Put.
func (o *OpenPublish) sendMissing(p Publish, missing []eboot.Digest, outcome *PublishOutcome) error {
	want := make(map[eboot.Digest]bool, len(missing))
	for _, d := range missing {
		want[d] = true
	}
	total := outcome.SentBytes
	counted := make(map[eboot.Digest]bool, len(missing))
	for _, entry := range p.Source.Manifest().Entries {
		if entry.Kind == eboot.KindFile && want[entry.Digest] && !counted[entry.Digest] {
			counted[entry.Digest] = true
			total += entry.Size
		}
	}
	o.startUpload()
	err := p.Source.Blobs(o.ctx, func(d eboot.Digest) bool { return want[d] }, func(d eboot.Digest, n int64, content io.Reader) error {
		counting := &countingReader{reader: content, add: func(k int64) {
			outcome.SentBytes += k
			if p.Progress != nil {
				p.Progress(outcome.SentBytes, total)
			}
		}}
		if err := o.upload.put(d, n, counting); err != nil {
			return err
		}
		outcome.SentBlobs++
		return nil
	})
	if err != nil {
		o.cancel() // the stream may stand within a blob
		_ = o.upload.end()
		return err
	}
	return o.upload.end()
}

// Close drops what was not committed; best effort, since the server forgets an idle
// publish by itself.
func (o *OpenPublish) Close() {
	o.cancel()
	_ = o.upload.end()
	if o.done {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(o.ctx), o.client.timeout)
	defer cancel()
	if response, err := o.server.send(ctx, "DELETE", o.path, nil, nil, nil, false); err == nil {
		response.Body.Close()
	}
}

type countingReader struct {
	reader io.Reader
	add    func(int64)
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.reader.Read(p)
	c.add(int64(n))
	return n, err
}
