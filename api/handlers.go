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
	"time"

	"golang.org/x/sync/errgroup"

	"eboot"
)

func (s *Server) whitelist(w http.ResponseWriter, r *http.Request) error {
	if err := s.fresh(w, r); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, s.backend.Entries())
}

func (s *Server) allow(w http.ResponseWriter, r *http.Request) error {
	write, err := readWrite(r)
	if err != nil {
		return err
	}
	var body AllowRequest
	if err := readJSON(r, &body); err != nil {
		return err
	}
	result, err := s.backend.Allow(r.Context(), write, body.Entries)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, result)
}

func (s *Server) deny(w http.ResponseWriter, r *http.Request) error {
	write, err := readWrite(r)
	if err != nil {
		return err
	}
	var body DenyRequest
	if err := readJSON(r, &body); err != nil {
		return err
	}
	result, err := s.backend.Deny(r.Context(), write, body.Prefixes)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, result)
}

func (s *Server) check(w http.ResponseWriter, r *http.Request) error {
	slave, err := pathAddr(r)
	if err != nil {
		return err
	}
	if err := s.fresh(w, r); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, s.backend.Check(slave))
}

func (s *Server) explain(w http.ResponseWriter, r *http.Request) error {
	slave, err := pathAddr(r)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, s.backend.Explain(slave))
}

func (s *Server) channels(w http.ResponseWriter, r *http.Request) error {
	if err := s.fresh(w, r); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, s.backend.Channels())
}

func (s *Server) channel(w http.ResponseWriter, r *http.Request) error {
	if err := s.fresh(w, r); err != nil {
		return err
	}
	c, err := s.backend.Channel(r.PathValue("channel"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, c)
}

func (s *Server) setChannel(w http.ResponseWriter, r *http.Request) error {
	write, err := readWrite(r)
	if err != nil {
		return err
	}
	var body ChannelSet
	if err := readJSON(r, &body); err != nil {
		return err
	}
	result, err := s.backend.SetChannel(r.Context(), write, r.PathValue("channel"), body)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, result)
}

func (s *Server) undoChannel(w http.ResponseWriter, r *http.Request) error {
	write, err := readWrite(r)
	if err != nil {
		return err
	}
	result, err := s.backend.UndoChannel(r.Context(), write, r.PathValue("channel"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, result)
}

func (s *Server) bundles(w http.ResponseWriter, r *http.Request) error {
	if err := s.fresh(w, r); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, s.backend.Bundles())
}

func (s *Server) bundle(w http.ResponseWriter, r *http.Request) error {
	ref, err := pathRef(r)
	if err != nil {
		return err
	}
	if err := s.fresh(w, r); err != nil {
		return err
	}
	details, err := s.backend.Bundle(ref)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, details)
}

func (s *Server) bootScript(w http.ResponseWriter, r *http.Request) error {
	ref, err := pathRef(r)
	if err != nil {
		return err
	}
	if err := s.fresh(w, r); err != nil {
		return err
	}
	script, err := s.backend.BootScript(r.Context(), ref, r.URL.Query().Get("erts"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, script)
}

// changeBundle answers a change of one bundle that a body of type B says.
func changeBundle[B any](change func(context.Context, Write, eboot.Ref, B) (WriteResult, error)) handlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		write, err := readWrite(r)
		if err != nil {
			return err
		}
		ref, err := pathRef(r)
		if err != nil {
			return err
		}
		var body B
		if err := readJSON(r, &body); err != nil {
			return err
		}
		result, err := change(r.Context(), write, ref, body)
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, result)
	}
}

func (s *Server) protectBundle(ctx context.Context, w Write, ref eboot.Ref, body ProtectedSet) (WriteResult, error) {
	return s.backend.ProtectBundle(ctx, w, ref, body.Protected)
}

func (s *Server) removeBundle(w http.ResponseWriter, r *http.Request) error {
	write, err := readWrite(r)
	if err != nil {
		return err
	}
	ref, err := pathRef(r)
	if err != nil {
		return err
	}
	force, err := queryFlag(r, "force")
	if err != nil {
		return err
	}
	result, err := s.backend.RemoveBundle(r.Context(), write, ref, r.URL.Query().Get("erts"), force)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, result)
}

// verifyBundle streams its progress, so that the length of the work does not
// look like a hang. An error after the first line ends the stream early: the
// client misses the line that says done.
func (s *Server) verifyBundle(w http.ResponseWriter, r *http.Request) error {
	ref, err := pathRef(r)
	if err != nil {
		return err
	}
	if err := s.fresh(w, r); err != nil {
		return err
	}
	if _, err := s.backend.Bundle(ref); err != nil {
		return err
	}
	ctx, cancel := streamContext(r)
	defer cancel()
	stream := openStream(w, typeLines)
	defer stream.close()
	if err := s.backend.VerifyBundle(ctx, ref, func(p VerifyProgress) error { return stream.line(p) }); err != nil {
		s.logger.Warn("verify ended early", "bundle", ref, "error", err)
		panic(http.ErrAbortHandler) // the documented way to break a reply off
	}
	return nil
}

func (s *Server) openPublish(w http.ResponseWriter, r *http.Request) error {
	opened, err := s.backend.OpenPublish(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, opened)
}

func (s *Server) describePublish(w http.ResponseWriter, r *http.Request) error {
	body := bufio.NewReaderSize(patient(w, r), 64<<10)
	line, err := body.ReadSlice('\n')
	if err != nil {
		return fmt.Errorf("publish: first line: want one line of JSON of at most 64 KiB: %w", eboot.ErrInvalid)
	}
	var request PublishRequest
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&request); err != nil {
		return fmt.Errorf("publish: first line: %v: %w", err, eboot.ErrInvalid)
	}
	if request.Manifest, err = readExactly(body, "manifest", request.ManifestBytes); err != nil {
		return err
	}
	if request.Times, err = readExactly(body, "times", request.TimesBytes); err != nil {
		return err
	}
	described, err := s.backend.DescribePublish(r.Context(), r.PathValue("publish"), request)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, described)
}

// readExactly grows with what arrives, not with what was announced.
func readExactly(r io.Reader, noun string, n int) ([]byte, error) {
	if n < 0 || n > eboot.MaxManifestSize {
		return nil, fmt.Errorf("publish: %s of %d bytes, at most %d: %w", noun, n, eboot.MaxManifestSize, eboot.ErrTooLarge)
	}
	data, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil || len(data) != n {
		return nil, fmt.Errorf("publish: %s: %d of %d bytes arrived: %w", noun, len(data), n, eboot.ErrInvalid)
	}
	return data, nil
}

// A blob of up to smallBlob bytes is read whole and put beside others, so that one
// upload keeps more than one processor busy.
const (
	smallBlob  = 256 << 10
	putsAtOnce = 4
)

func (s *Server) putBlobs(w http.ResponseWriter, r *http.Request) error {
	type blob struct {
		digest  eboot.Digest
		size    int64
		content *[smallBlob]byte
	}
	id := r.PathValue("publish")
	puts, ctx := errgroup.WithContext(r.Context())
	work, free := make(chan blob), make(chan *[smallBlob]byte, putsAtOnce)
	for range putsAtOnce {
		free <- new([smallBlob]byte)
		puts.Go(func() error {
			for b := range work {
				err := s.backend.PutBlob(ctx, id, b.digest, b.size, bytes.NewReader(b.content[:b.size]))
				if free <- b.content; err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := readBlobs(bufio.NewReaderSize(patient(w, r), 256<<10), func(d eboot.Digest, size int64, content io.Reader) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if size > smallBlob {
			return s.backend.PutBlob(ctx, id, d, size, content)
		}
		buffer := <-free
		if n, err := io.ReadFull(content, buffer[:size]); err != nil {
			return fmt.Errorf("blob %s: stream cut off %d bytes before its end: %w", d.Short(), size-int64(n), eboot.ErrInvalid)
		}
		select {
		case work <- blob{d, size, buffer}:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	close(work)
	if putErr := puts.Wait(); putErr != nil {
		err = putErr // the cause of whatever the reader has met
	}
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, struct{}{})
}

// uploadStall is how long an upload may bring nothing.
const uploadStall = time.Minute

// patientReader reads a body for as long as something comes: a client that went
// away without a word must not hold a publish open for ever.
type patientReader struct {
	body    io.Reader
	control *http.ResponseController
	armed   time.Time
}

func patient(w http.ResponseWriter, r *http.Request) io.Reader {
	return &patientReader{body: r.Body, control: http.NewResponseController(w)}
}

func (p *patientReader) Read(b []byte) (int, error) {
	if now := time.Now(); now.Sub(p.armed) > uploadStall/8 {
		if err := p.control.SetReadDeadline(now.Add(uploadStall)); err != nil {
			return 0, err
		}
		p.armed = now
	}
	return p.body.Read(b)
}

func (s *Server) commitPublish(w http.ResponseWriter, r *http.Request) error {
	write, err := readWrite(r)
	if err != nil {
		return err
	}
	var body PublishCommit
	if err := readJSON(r, &body); err != nil {
		return err
	}
	if body.Channel != "" {
		if err := permit(r, eboot.RoleOperator, "publish with a channel"); err != nil {
			return err
		}
	}
	result, err := s.backend.CommitPublish(r.Context(), r.PathValue("publish"), write, body)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, result)
}

func (s *Server) abortPublish(w http.ResponseWriter, r *http.Request) error {
	if err := s.backend.AbortPublish(r.PathValue("publish")); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, struct{}{})
}

// saveSnapshot sends the snapshot whole: the size is known before the first
// byte, so a client sees when it was cut off.
func (s *Server) saveSnapshot(w http.ResponseWriter, r *http.Request) error {
	var out bytes.Buffer
	info, err := s.backend.SaveSnapshot(r.Context(), caller(r).Actor, &out)
	if err != nil {
		return err
	}
	described, err := json.Marshal(info)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", fmt.Sprint(out.Len()))
	w.Header().Set("Eboot-Snapshot", string(described))
	_, err = out.WriteTo(w)
	if err != nil {
		s.logger.Debug("snapshot not delivered", "error", err)
	}
	return nil
}

func (s *Server) restoreSnapshot(w http.ResponseWriter, r *http.Request) error {
	force, err := queryFlag(r, "force")
	if err != nil {
		return err
	}
	info, err := s.backend.RestoreSnapshot(r.Context(), caller(r).Actor, http.MaxBytesReader(w, r.Body, maxSnapshotBody), force)
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return fmt.Errorf("snapshot: more than %d bytes: %w", maxSnapshotBody, eboot.ErrTooLarge)
		}
		return err
	}
	return writeJSON(w, http.StatusOK, info)
}
