package api

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"eboot"
)

// Events are what happened.
type Events interface {
	// Events returns what is remembered, oldest first.
	Events() []eboot.Event
	// FollowEvents delivers events as they happen, or as they are heard of, until ctx
	// ends; then it closes the channel.
	FollowEvents(ctx context.Context) <-chan eboot.Event
}

// Headers of a stream of events.
const (
	headerAccept      = "Accept"
	headerLastEventID = "Last-Event-ID" // of a request: the event that was heard last
	headerLatestEvent = "Eboot-Latest-Event"
)

func (s *Server) events(w http.ResponseWriter, r *http.Request) error {
	if err := s.fresh(w, r); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, orEmpty(s.backend.Events()))
}

// followEvents sends what came after the event that Last-Event-ID names, then what
// happens. When that event is forgotten, or was never heard of here, all that is
// remembered is sent: rather twice than not at all. A header names the event that was the
// latest when the stream began, so that one that brought none can be resumed too.
func (s *Server) followEvents(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := streamContext(r)
	defer cancel()
	coming := s.backend.FollowEvents(ctx) // before the past is read: nothing falls between
	past := s.backend.Events()
	if len(past) > 0 {
		w.Header().Set(headerLatestEvent, oneLine(past[len(past)-1].ID))
	}
	if last := r.Header.Get(headerLastEventID); last != "" {
		at := slices.IndexFunc(past, func(e eboot.Event) bool { return e.ID == last })
		past = past[at+1:]
	} else {
		past = nil
	}
	contentType := typeSSE
	if accepts(r, typeNDJSON) {
		contentType = typeNDJSON
	}
	follow(w, r, contentType, s.heartbeat, past, coming, func(e eboot.Event) (id, kind string) { return e.ID, string(e.Kind) })
	return nil
}

// Events returns what a server remembers of what happened, oldest first.
func (c *Client) Events(ctx context.Context) (events []eboot.Event, err error) {
	return events, c.do(ctx, call{method: "GET", path: "/v1/events", query: c.state()}, &events)
}

// FollowEvents calls each once for every event from now on, until ctx ends (nil), each
// returns an error, or no server answers any more (eboot.ErrUnreachable). When a server goes
// away the next one, or the same one again, is asked for what came since.
func (c *Client) FollowEvents(ctx context.Context, each func(eboot.Event) error) error {
	var last string
	var heard recentIDs
	for {
		header := http.Header{headerAccept: {typeNDJSON}}
		if last != "" {
			header.Set(headerLastEventID, last)
		}
		response, _, err := c.open(ctx, call{method: "GET", path: "/v1/events/follow", header: header})
		if err == nil {
			if last == "" {
				last = response.Header.Get(headerLatestEvent)
			}
			_, err = eachLine(response, func(line []byte) error {
				var e eboot.Event
				if err := json.Unmarshal(line, &e); err != nil {
					return err
				}
				if last = e.ID; !heard.add(e.ID) {
					return nil
				}
				return each(e)
			})
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		pause := time.NewTimer(longestPause)
		select {
		case <-ctx.Done():
			pause.Stop()
			return nil
		case <-pause.C:
		}
	}
}

// recentIDs remembers the ids that were added last, at least as many as a server
// remembers events.
type recentIDs struct {
	newer, older map[string]bool
}

const recentIDsEach = 4096

// add reports whether id is new.
func (r *recentIDs) add(id string) bool {
	if r.newer[id] || r.older[id] {
		return false
	}
	if r.newer == nil || len(r.newer) >= recentIDsEach {
		r.newer, r.older = map[string]bool{}, r.newer
	}
	r.newer[id] = true
	return true
}
