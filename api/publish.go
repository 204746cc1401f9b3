package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

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
	// Progress hears of bytes sent, of how many there are to send; may be nil.
	Progress func(sent, total int64)
}

// PublishOutcome is what a publish did.
type PublishOutcome struct {
	PublishResult
	SentBlobs int   `json:"sent_blobs"`
	SentBytes int64 `json:"sent_bytes"`
}

// Publish sends what the server lacks and commits. The whole publish stays with
// one server. Repeating it after any failure is safe; what arrived is not sent again
// once it was flushed. eboot.ErrConflict: the name is taken by other content.
func (c *Client) Publish(ctx context.Context, p Publish) (PublishOutcome, error) {
	var outcome PublishOutcome
	e, err := c.pick(ctx)
	if err != nil {
		return outcome, err
	}
	opened, err := c.openPublish(ctx, e, p)
	if err != nil {
		return outcome, err
	}
	path := "/v1/publishes/" + opened.ID
	defer func() {
		// Best effort: the server forgets an idle publish by itself. Not when the
		// outcome is unknown: what came in may be of a bundle that is visible.
		if err != nil && !errors.Is(err, eboot.ErrUnknownOutcome) {
			abort, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.timeout)
			defer cancel()
			if response, abortErr := e.send(abort, "DELETE", path, nil, nil, nil, false); abortErr == nil {
				response.Body.Close()
			}
		}
	}()
	if len(opened.Missing) > 0 {
		if outcome.SentBlobs, outcome.SentBytes, err = c.sendBlobs(ctx, e, path, p, opened.Missing); err != nil {
			return outcome, err
		}
	}
	body, err := json.Marshal(PublishCommit{Channel: p.Channel, MinCopies: p.MinCopies})
	if err != nil {
		return outcome, err
	}
	response, err := e.send(ctx, "POST", path+"/commit", nil, c.header(true), bytes.NewReader(body), true)
	if err != nil {
		return outcome, err
	}
	err = decode(response, nil, &outcome.PublishResult)
	return outcome, err
}

func (c *Client) openPublish(ctx context.Context, e endpoint, p Publish) (PublishOpened, error) {
	manifest, times := p.Source.Manifest().Encode(), eboot.EncodeTimes(p.Source.Times())
	line, err := json.Marshal(PublishRequest{
		Name: p.Ref.Name, Version: p.Ref.Version, ERTS: p.ERTS, BootScript: p.BootScript, SysConfig: p.SysConfig,
		ManifestBytes: len(manifest), TimesBytes: len(times),
	})
	if err != nil {
		return PublishOpened{}, err
	}
	body := io.MultiReader(bytes.NewReader(append(line, '\n')), bytes.NewReader(manifest), bytes.NewReader(times))
	header := http.Header{"Content-Type": {"application/x-eboot-publish"}}
	response, err := e.send(ctx, "POST", "/v1/publishes", nil, header, body, false)
	if err != nil {
		return PublishOpened{}, err
	}
	var opened PublishOpened
	return opened, decode(response, nil, &opened)
}

// sendBlobs streams the missing blobs in one request.
func (c *Client) sendBlobs(ctx context.Context, e endpoint, path string, p Publish, missing []eboot.Digest) (blobs int, size int64, err error) {
	want := make(map[eboot.Digest]bool, len(missing))
	for _, d := range missing {
		want[d] = true
	}
	var total int64
	counted := make(map[eboot.Digest]bool, len(missing))
	for _, entry := range p.Source.Manifest().Entries {
		if entry.Kind == eboot.KindFile && want[entry.Digest] && !counted[entry.Digest] {
			counted[entry.Digest] = true
			total += entry.Size
		}
	}

	reader, writer := io.Pipe()
	produced := make(chan error, 1)
	go func() {
		buffered := bufio.NewWriterSize(writer, 256<<10)
		err := p.Source.Blobs(ctx, func(d eboot.Digest) bool { return want[d] }, func(d eboot.Digest, n int64, content io.Reader) error {
			counting := &countingReader{reader: content, add: func(k int64) {
				size += k
				if p.Progress != nil {
					p.Progress(size, total)
				}
			}}
			if err := writeBlob(buffered, d, n, counting); err != nil {
				return err
			}
			blobs++
			return nil
		})
		if err == nil {
			err = buffered.Flush()
		}
		writer.CloseWithError(err) // nil: end of the stream
		produced <- err
	}()
	response, sendErr := e.send(ctx, "PUT", path+"/blobs", nil, nil, reader, false)
	reader.Close()
	produceErr := <-produced
	switch {
	case sendErr == nil:
		// The server's answer says more than the broken pipe it leaves behind.
		err = decode(response, nil, nil)
	case produceErr != nil && !errors.Is(produceErr, io.ErrClosedPipe):
		err = produceErr
	default:
		err = sendErr
	}
	if err != nil {
		return blobs, size, fmt.Errorf("send blobs: %w", err)
	}
	return blobs, size, nil
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
