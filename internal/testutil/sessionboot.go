package testutil

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// SimulatedBoot is what a slave with the loader asks for in one boot.
type SimulatedBoot struct {
	Script   string // path of the boot script
	Requests []any  // of the plain protocol, once the bundle is open
}

// Boot does what such a slave does on the wire, from the search to the report that it has
// started, and switches to another server when one is lost or silent. What came is not fetched again. It
// ends with an error when ctx ends, or when a server refuses.
func (s *Session) Boot(ctx context.Context, b SimulatedBoot) error {
	began := time.Now()
	err := s.persist(ctx, func() error {
		_, err := s.Script(b.Script)
		return err
	})
	if err != nil {
		return fmt.Errorf("boot script: %w", err)
	}
	var plan []string
	err = s.persist(ctx, func() error {
		o, err := s.Open("tree", "plan")
		plan = o.Plan
		return err
	})
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	asked := true // the plan's files come without a further request
	err = s.persist(ctx, func() error {
		if !asked {
			if err := s.reopen(); err != nil {
				return err
			}
			if err := s.Fetch(plan); err != nil {
				return err
			}
		}
		asked = false
		n, err := s.ReadFiles(plan)
		plan = plan[n:]
		return err
	})
	if err != nil {
		return fmt.Errorf("plan: %w", err)
	}
	for _, request := range b.Requests {
		err := s.persist(ctx, func() error {
			if err := s.reopen(); err != nil {
				return err
			}
			_, err := s.Request(request)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", Format(request), err)
		}
	}
	return s.persist(ctx, func() error {
		if err := s.reopen(); err != nil {
			return err
		}
		return s.Report(Phase{"started", time.Since(began)})
	})
}

// reopen opens the bundle on a connection that is new.
func (s *Session) reopen() error {
	if s.opened {
		return nil
	}
	_, err := s.Open()
	return err
}

// persist does something on the connection, and again on one to another server when that one
// is lost, until it succeeds or ctx ends. Other errors are final.
func (s *Session) persist(ctx context.Context, do func() error) error {
	for {
		var err error
		if s.conn == nil {
			err = s.connectToAny(ctx)
		}
		if err == nil {
			if err = do(); err == nil {
				return nil
			}
			if !lost(err) {
				return err
			}
			s.Close()
			s.Switches++
			s.Loss = err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w; the latest failure: %w", context.Cause(ctx), err)
		}
	}
}

// lost reports whether an error is the end of a connection, or its silence.
func lost(err error) bool {
	var network *net.OpError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || errors.As(err, &network)
}

// errNoServer: nobody answered a search.
var errNoServer = errors.New("no server answers")

// connectToAny connects to the best server that answers and accepts. The one that was used
// last comes after all others.
func (s *Session) connectToAny(ctx context.Context) error {
	found, err := s.Search(500 * time.Millisecond)
	if err != nil {
		return err
	}
	err = errNoServer
	for _, again := range []bool{false, true} {
		for _, server := range found {
			if (server.From.Addr() == s.server) != again || ctx.Err() != nil {
				continue
			}
			if err = s.Connect(server); err == nil {
				return nil
			}
		}
	}
	return err
}
