package api

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Content types of replies that go on.
const (
	typeLines  = "application/jsonl" // one JSON value a line
	typeNDJSON = "application/x-ndjson"
	typeSSE    = "text/event-stream" // server-sent events, as web pages follow them
)

const (
	// heartbeat is how often a stream of server-sent events says that it is still there.
	heartbeat = 15 * time.Second
	// streamStall is how long a reader of a stream may take nothing.
	streamStall = time.Minute
)

// stream is a reply of values, each delivered at once.
type stream struct {
	out     *bufio.Writer
	encoder *json.Encoder
	control *http.ResponseController
}

// openStream sends the header: who follows wants to know that it is connected.
func openStream(w http.ResponseWriter, contentType string) *stream {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	out := bufio.NewWriter(w)
	s := &stream{out: out, encoder: json.NewEncoder(out), control: http.NewResponseController(w)}
	_ = s.flush()
	return s
}

// close leaves the connection to the next request.
func (s *stream) close() { _ = s.control.SetWriteDeadline(time.Time{}) } // a connection that is gone has none

func (s *stream) flush() error {
	_ = s.control.SetWriteDeadline(time.Now().Add(streamStall)) // the write says what is wrong
	if err := s.out.Flush(); err != nil {
		return err
	}
	return s.control.Flush()
}

// line sends v as a line of JSON.
func (s *stream) line(v any) error {
	if err := s.encoder.Encode(v); err != nil {
		return err
	}
	return s.flush()
}

// event sends v as a server-sent event; an empty id is left out.
func (s *stream) event(id, kind string, v any) error {
	if id != "" {
		fmt.Fprintf(s.out, "id: %s\n", oneLine(id))
	}
	fmt.Fprintf(s.out, "event: %s\ndata: ", oneLine(kind)) // of an error the flush tells
	if err := s.encoder.Encode(v); err != nil {
		return err
	}
	return s.comment("")
}

// comment sends what readers of server-sent events pass over; empty: the end of an event.
func (s *stream) comment(text string) error {
	if text != "" {
		fmt.Fprintf(s.out, ": %s\n", text)
	}
	s.out.WriteByte('\n')
	return s.flush()
}

// accepts reports whether a request names a content type as one it wants.
func accepts(r *http.Request, contentType string) bool {
	for _, value := range r.Header.Values(headerAccept) {
		for one := range strings.SplitSeq(value, ",") {
			name, _, _ := strings.Cut(one, ";")
			if strings.TrimSpace(name) == contentType {
				return true
			}
		}
	}
	return false
}

// follow sends what is in past, then what comes and was not in past, until the channel is
// closed, the reader is gone or, seen at the next beat, would not be let in any more. name
// returns what a server-sent event calls a value.
func follow[T any](w http.ResponseWriter, r *http.Request, contentType string, beat time.Duration, past []T, coming <-chan T, name func(T) (id, kind string)) {
	stream := openStream(w, contentType)
	defer stream.close()
	send := func(v T) error { return stream.line(v) }
	if contentType == typeSSE {
		send = func(v T) error {
			id, kind := name(v)
			return stream.event(id, kind, v)
		}
	}
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	sent := make(map[string]bool, len(past))
	for _, v := range past {
		id, _ := name(v)
		sent[id] = true
		if send(v) != nil {
			return
		}
	}
	for {
		select {
		case v, more := <-coming:
			if !more {
				return
			}
			if id, _ := name(v); sent[id] {
				delete(sent, id)
			} else if send(v) != nil {
				return
			}
		case <-ticker.C:
			if !still(r) {
				return
			}
			if contentType == typeSSE && stream.comment("still here") != nil { // lines have no heartbeat
				return
			}
		}
	}
}

// writeList sends a list as JSON row by row, so that who reads it need not wait for the
// last one, nor this server hold all of it twice.
func writeList[T any](w http.ResponseWriter, rows []T) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	out := bufio.NewWriterSize(w, 64<<10)
	encoder := json.NewEncoder(out)
	before := byte('[')
	for i := range rows {
		out.WriteByte(before) // of an error the flush tells
		if err := encoder.Encode(&rows[i]); err != nil {
			panic(http.ErrAbortHandler) // the reader is gone, or must not take this for the whole list
		}
		before = ','
	}
	if len(rows) == 0 {
		out.WriteByte('[')
	}
	out.WriteString("]\n")
	_ = out.Flush() // the reader is gone
	return nil
}

// list is a result that is decoded while it arrives.
type list[T any] []T

func (l *list[T]) decodeFrom(d *json.Decoder) error {
	if bracket, err := d.Token(); err != nil || bracket != json.Delim('[') {
		return fmt.Errorf("want a list, got %v (%v)", bracket, err)
	}
	*l = []T{}
	for d.More() {
		var row T
		if err := d.Decode(&row); err != nil {
			return err
		}
		*l = append(*l, row)
	}
	_, err := d.Token()
	return err
}

// eachLine reads a stream to its end. cut is why it could not; a line that was cut off is
// left out.
func eachLine(response *http.Response, each func(line []byte) error) (cut, err error) {
	defer response.Body.Close()
	scanner := bufio.NewScanner(response.Body)
	scanner.Buffer(nil, 16<<20)
	scanner.Split(func(data []byte, _ bool) (advance int, line []byte, err error) {
		if end := bytes.IndexByte(data, '\n'); end >= 0 {
			return end + 1, data[:end], nil
		}
		return 0, nil, nil
	})
	for scanner.Scan() {
		if err := each(scanner.Bytes()); err != nil {
			return nil, err
		}
	}
	return scanner.Err(), nil
}
