package mirror

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/hashicorp/go-hclog"

	"eboot"
	"eboot/filestore"
)

// Bounds of what peers can make a server do.
const (
	maxRequests  = 64               // served at once; a Mirror makes a handful
	readTimeout  = 10 * time.Second // for the body of a request, 128 KiB at most
	writeTimeout = 30 * time.Second // for each writeChunk
	writeChunk   = 256 << 10        // bytes
)

// Handler gives out the blobs of store. More than 64 requests at once are
// answered 503; a peer that takes less than 256 KiB in 30 s is cut off. logger may be nil.
func Handler(store *filestore.Store, logger hclog.Logger) http.Handler {
	if logger == nil {
		logger = hclog.NewNullLogger()
	}
	h := &handler{store: store, log: logger, turns: make(chan struct{}, maxRequests)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+blobsPath, h.bounded(h.many))
	mux.HandleFunc("GET "+blobsPath+"/{digest}", h.bounded(h.one))
	return mux
}

type handler struct {
	store *filestore.Store
	log   hclog.Logger
	turns chan struct{} // one element for each request being served
}

// bounded limits how many requests are served at once, and turns an error into a
// reply. An error after the reply has begun breaks the connection, which is how
// the peer learns of it.
func (h *handler) bounded(serve func(w *reply, r *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		rep := &reply{ResponseWriter: w, control: http.NewResponseController(w)}
		select {
		case h.turns <- struct{}{}:
			defer func() { <-h.turns }()
		default:
			http.Error(w, "too many requests at once", http.StatusServiceUnavailable)
			return
		}
		err := rep.extend()
		if err == nil {
			err = serve(rep, r)
		}
		switch {
		case err == nil:
		case rep.begun:
			h.log.Debug("blobs not sent to the end", "remote", r.RemoteAddr, "error", err)
			panic(http.ErrAbortHandler)
		default:
			http.Error(w, err.Error(), status(err))
		}
	}
}

func status(err error) int {
	switch {
	case errors.Is(err, eboot.ErrInvalid):
		return http.StatusBadRequest
	case errors.Is(err, eboot.ErrNotFound), errors.Is(err, eboot.ErrDamaged):
		return http.StatusNotFound
	default:
		return http.StatusServiceUnavailable
	}
}

// reply is a response that may take as long as it makes progress.
type reply struct {
	http.ResponseWriter
	control *http.ResponseController
	begun   bool
}

// extend gives the next writes their time.
func (w *reply) extend() error { return w.control.SetWriteDeadline(time.Now().Add(writeTimeout)) }

func (w *reply) Write(p []byte) (int, error) {
	w.begun = true
	if err := w.extend(); err != nil {
		return 0, err
	}
	return w.ResponseWriter.Write(p)
}

// send writes the n bytes that r yields, by sendfile(2) where the connection can.
func (w *reply) send(r io.Reader, n int64) error {
	w.begun = true
	for n > 0 {
		if err := w.extend(); err != nil {
			return err
		}
		sent, err := io.CopyN(w.ResponseWriter, r, min(n, writeChunk))
		if err != nil {
			return err
		}
		n -= sent
	}
	return nil
}

// one answers GET /v1/blobs/HEX?offset=N.
func (h *handler) one(w *reply, r *http.Request) error {
	d, err := eboot.ParseDigest(r.PathValue("digest"))
	if err != nil {
		return err
	}
	var offset int64
	if s := r.URL.Query().Get("offset"); s != "" {
		if offset, err = strconv.ParseInt(s, 10, 64); err != nil || offset < 0 {
			return fmt.Errorf("offset %.40q: want bytes: %w", s, eboot.ErrInvalid)
		}
	}
	c, err := h.store.Blob(d)
	if err != nil {
		return err
	}
	if c.File != nil {
		defer c.File.Close() // read only: nothing to lose
	}
	if offset > c.Size {
		return fmt.Errorf("offset %d: blob %s has %d bytes: %w", offset, d.Short(), c.Size, eboot.ErrInvalid)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(c.Size-offset, 10))
	if c.File == nil {
		_, err := w.Write(c.Data[offset:])
		return err
	}
	file, ok := c.File.(io.ReadSeeker)
	if !ok {
		return fmt.Errorf("blob %s: cannot be read from an offset: %w", d.Short(), eboot.ErrUnavailable)
	}
	if _, err := file.Seek(offset, io.SeekStart); err != nil {
		return fmt.Errorf("blob %s: %w", d.Short(), err)
	}
	return w.send(file, c.Size-offset)
}

// many answers POST /v1/blobs.
func (h *handler) many(w *reply, r *http.Request) error {
	if err := w.control.SetReadDeadline(time.Now().Add(readTimeout)); err != nil {
		return err
	}
	body, err := io.ReadAll(http.MaxBytesReader(w.ResponseWriter, r.Body, maxRequest))
	if err != nil {
		return fmt.Errorf("request: %w: %w", err, eboot.ErrInvalid)
	}
	// The connection is read on, to notice when the peer goes: no deadline for that.
	if err := w.control.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	asked, err := decodeRequest(body)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	buffered := bufio.NewWriterSize(w, 64<<10)
	for _, d := range asked {
		if err := h.append(r.Context(), buffered, d); err != nil {
			return err
		}
	}
	return buffered.Flush()
}

// append writes the header and content of one blob.
func (h *handler) append(ctx context.Context, w *bufio.Writer, d eboot.Digest) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c, err := h.store.Blob(d)
	if err != nil {
		if !errors.Is(err, eboot.ErrNotFound) && !errors.Is(err, eboot.ErrDamaged) {
			h.log.Warn("blob cannot be read for a peer", "digest", d, "error", err)
		}
		_, err := w.Write(appendHeader(w.AvailableBuffer(), d, absent))
		return err
	}
	if c.File != nil {
		defer c.File.Close() // read only: nothing to lose
	}
	if _, err := w.Write(appendHeader(w.AvailableBuffer(), d, c.Size)); err != nil {
		return err
	}
	if c.File == nil {
		_, err := w.Write(c.Data)
		return err
	}
	// Not io.CopyN alone: it would hand the whole file to one write, with one deadline.
	for left := c.Size; left > 0; left -= min(left, writeChunk) {
		if _, err := io.CopyN(struct{ io.Writer }{w}, c.File, min(left, writeChunk)); err != nil {
			return err
		}
	}
	return nil
}
