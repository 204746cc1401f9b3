package api

import (
	"context"
	"net/http"
	"strings"
	"time"

	"eboot"
)

// freshPatience bounds how long a read waits for what was acknowledged elsewhere.
const freshPatience = 2 * time.Second

// fresh is called before a read of replicated state. When this server cannot know
// whether it knows everything, the reply is what it knows, and a header says so: to
// show the whitelist of yesterday is better than to show none, if it is said.
func (s *Server) fresh(w http.ResponseWriter, r *http.Request) error {
	stale, err := queryFlag(r, "stale")
	if err != nil || stale {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), freshPatience)
	defer cancel()
	if err := s.backend.Fresh(ctx); err != nil {
		w.Header().Set(headerStale, oneLine(err.Error()))
	}
	return nil
}

// oneLine makes a text fit to stand in a header.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
}

func (s *Server) members(w http.ResponseWriter, r *http.Request) error {
	m, err := s.backend.Members(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, m)
}

func (s *Server) initCluster(w http.ResponseWriter, r *http.Request) error {
	if err := s.backend.InitCluster(r.Context()); err != nil {
		return err
	}
	status := s.backend.Status()
	return writeJSON(w, http.StatusOK, ClusterFounded{Cluster: status.Cluster, Server: status.Server})
}

func (s *Server) drainServer(w http.ResponseWriter, r *http.Request) error {
	write, err := readWrite(r)
	if err != nil {
		return err
	}
	id, err := pathServer(r)
	if err != nil {
		return err
	}
	var body DrainedSet
	if err := readJSON(r, &body); err != nil {
		return err
	}
	result, err := s.backend.DrainServer(r.Context(), write, id, body.Drained)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, result)
}

func (s *Server) transferLeadership(w http.ResponseWriter, r *http.Request) error {
	var body LeaderTransfer
	if err := readJSON(r, &body); err != nil {
		return err
	}
	if body.To != "" {
		if err := eboot.CheckName("server", body.To); err != nil {
			return err
		}
	}
	leader, err := s.backend.TransferLeadership(r.Context(), caller(r).Actor, body.To)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, LeaderTransferred{Leader: leader})
}

func (s *Server) removeServer(w http.ResponseWriter, r *http.Request) error {
	write, err := readWrite(r)
	if err != nil {
		return err
	}
	id, err := pathServer(r)
	if err != nil {
		return err
	}
	replace, err := queryFlag(r, "replace")
	if err != nil {
		return err
	}
	result, err := s.backend.RemoveServer(r.Context(), write, id, replace)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, result)
}

// pathServer is the id of a server, a prefix of one, or "self".
func pathServer(r *http.Request) (string, error) {
	id := r.PathValue("server")
	return id, eboot.CheckName("server", id)
}
