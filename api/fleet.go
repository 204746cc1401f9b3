package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"

	"eboot"
)

// Fleet is what was observed of slaves, by any server.
type Fleet interface {
	// Slaves returns every slave that was seen, and every entry of the whitelist of which
	// none was, in order of address.
	Slaves() []eboot.SlaveStatus
	// Boots returns the boots that are remembered, newest first; an invalid
	// address means those of all slaves.
	Boots(slave netip.Addr) []eboot.Boot
	// FollowBoots delivers boots as they begin and change phase, until ctx ends; then
	// it closes the channel.
	FollowBoots(ctx context.Context) <-chan eboot.Boot
	// Explain says step by step why slave would or would not boot.
	Explain(slave netip.Addr) eboot.Explanation
}

func (s *Server) slaves(w http.ResponseWriter, r *http.Request) error {
	if err := s.fresh(w, r); err != nil {
		return err
	}
	return writeList(w, s.backend.Slaves())
}

func (s *Server) boots(w http.ResponseWriter, r *http.Request) error {
	var slave netip.Addr
	if text := r.URL.Query().Get("slave"); text != "" {
		var err error
		if slave, err = eboot.ParseAddr(text); err != nil {
			return err
		}
	}
	return writeList(w, s.backend.Boots(slave))
}

func (s *Server) followBoots(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := streamContext(r)
	defer cancel()
	contentType := typeLines
	if accepts(r, typeSSE) {
		contentType = typeSSE
	}
	// A boot comes again and again; there is no place in the stream to go on from.
	follow(w, r, contentType, s.heartbeat, nil, s.backend.FollowBoots(ctx), func(eboot.Boot) (id, kind string) { return "", "boot" })
	return nil
}

// Slaves returns every slave that was seen, and every entry of the whitelist of which none
// was, in order of address.
func (c *Client) Slaves(ctx context.Context) (slaves []eboot.SlaveStatus, err error) {
	return slaves, c.do(ctx, call{method: "GET", path: "/v1/slaves", query: c.state()}, (*list[eboot.SlaveStatus])(&slaves))
}

// Boots returns the boots a server remembers, newest first; an invalid address
// means those of all slaves.
func (c *Client) Boots(ctx context.Context, slave netip.Addr) (boots []eboot.Boot, err error) {
	query := url.Values{}
	if slave.IsValid() {
		query.Set("slave", slave.String())
	}
	return boots, c.do(ctx, call{method: "GET", path: "/v1/boots", query: query}, (*list[eboot.Boot])(&boots))
}

// FollowBoots calls each for every boot that begins or changes phase, until ctx
// ends (nil) or the server goes away (eboot.ErrUnreachable).
func (c *Client) FollowBoots(ctx context.Context, each func(eboot.Boot) error) error {
	err := c.stream(ctx, "GET", "/v1/boots/follow", func(line []byte) error {
		var b eboot.Boot
		if err := json.Unmarshal(line, &b); err != nil {
			return err
		}
		return each(b)
	})
	switch {
	case ctx.Err() != nil:
		return nil
	case err == nil:
		return fmt.Errorf("follow boots: the server ended the stream: %w", eboot.ErrUnreachable)
	}
	return err
}
