package agent

import (
	"net"

	"eboot/bootproto"
	"eboot/internal/sockholder"
)

// newHolder makes the holder of connections, if there is to be one. A server that
// cannot have one serves all the same.
func (a *Agent) newHolder(o Options) {
	if len(o.Holder) == 0 {
		return
	}
	h, err := sockholder.New(sockholder.Options{
		Program: o.Holder[0], Args: append([]string{"eboot"}, o.Holder[1:]...), Slots: o.Config.Boot.Limits.Connections, Logger: o.Logger.Named("holder"),
	})
	if err != nil {
		o.Logger.Warn("a crash of this server will make idle slaves wait: their connections are not held", "error", err)
		return
	}
	a.holder = h
}

// closeHolder is for when no connection is left.
func (a *Agent) closeHolder() error {
	if a.holder == nil {
		return nil
	}
	return a.holder.Close()
}

// socketHolder is the holder as the file server wants it.
func (a *Agent) socketHolder() bootproto.Holder {
	if a.holder == nil {
		return nil
	}
	return socketHolder{a.holder}
}

type socketHolder struct{ holder *sockholder.Holder }

func (s socketHolder) Hold(conn *net.TCPConn) bootproto.Held {
	if held := s.holder.Hold(conn); held != nil {
		return held
	}
	return nil
}
