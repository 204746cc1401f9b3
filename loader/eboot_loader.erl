%% The loader that eboot's boot scripts bring along. It takes the place of
%% erl_prim_loader on a node started with -loader inet: it registers that name,
%% answers the same messages, and adopts the connection that the stock loader
%% has made. docs/PROTOCOL.md, "The session", describes what it says to a server.
%%
%% Nouns. The bundle is named by its digest, for the whole life of the node. The
%% tree is what is known of its files: with it listings, file infos and "no such
%% file" are answered here. The plan are the files that this boot will need, sent
%% ahead; what has arrived and was not used yet is in files, what is on its way
%% in expect. The plain protocol is OTP's own, spoken to a server that does not
%% know ours.
%%
%% It runs while nothing but the preloaded modules exists: erlang, init,
%% prim_inet and the BIFs of lists and maps. Two builds are made of it, one that
%% OTP 23 and 24 read, and one for everything newer. (No records: the compiler of OTP 25
%% makes instructions of them that OTP 23 has not, whatever it is told.)
-module(eboot_loader).

-export([start/1, phase/1, configure/0]).

-define(PORT, 4368).          % discovery (inet_boot.hrl)
-define(SILENCE, 1500).       % ms without a byte while we wait; a server says something every 250 ms
-define(PLAIN_SILENCE, 15000).% of a server that speaks plain EBOOT only
-define(WINDOW, 200).         % ms in which a better server may answer discovery
-define(ROUND, 500).          % ms until everybody is asked again
-define(CONNECT, 300).        % ms for a TCP connection; ten times that when in vain
-define(SUSPECT, 5000).       % ms for which a server that failed is the last choice
-define(LAZY_REPORT, 250).    % ms that a phase may wait for others to report
-define(RELEASE, 5000).       % ms after the boot, or the last use, until tree and files are dropped
-define(IDLE, 60000).         % ms without use until the connection is closed, as the stock loader does
-define(DEAF, 65000).         % ms without a sign of life on a connection that is kept
-define(COMPLAIN, 10000).     % ms in vain until the console is told
-define(SLOW, 20).           % ms to the answer of a slow link
-define(GROUP, 64).           % modules fetched at once
-define(AT_ONCE, 4).          % modules processed at once
-define(CHUNKS, 8).           % of what a socket has read that wait for the loader; the rest waits in the kernel
-define(FETCH, 400).          % paths in one request, and
-define(FRAME, 32768).        % bytes of them; a server takes 64 KiB

%% start/1 is called by the boot script, as the start of a kernel process. Args is a
%% list of {Key, Value}: digest, bundle and script name the bundle, vars has the
%% directories that boot variables stand for.
start(Args) ->
    Self = self(),
    Pid = spawn_link(fun() -> init(Self, Args) end),
    receive
        {Pid, ok} -> {ok, Pid};
        {'EXIT', Pid, Reason} -> {error, Reason}
    end.

%% phase/1 is called by the boot script after each progress.
phase(Phase) ->
    erl_prim_loader ! {?MODULE, phase, Phase, now_ms()},
    ok.

%% configure/0 is called by the boot script of a bundle that has a sys.config. The module
%% unicode must be loaded: init would ask for it while it waits for us.
configure() ->
    case {init:get_argument(config), init:get_argument(configfd)} of
        {error, error} -> init:make_permanent(false, root() ++ "/sys");
        _ -> ok
    end,
    erl_prim_loader ! {self(), {?MODULE, provider}},
    Loader = whereis(erl_prim_loader),
    receive {Loader, Provider} -> provide(Provider) end.

%% provide lets a release of mix evaluate its runtime.exs: Elixir's Config.Provider takes the
%% names of files from the environment, as mix's start script sets it, and reads them from the slave's own
%% disk. So they are put there, below TMPDIR. One that would write its result and restart cannot work: the
%% result would be read through us.
provide(none) ->
    ok;
provide(Provider) ->
    case {os:getenv("RELEASE_SYS_CONFIG"), os:getenv("EBOOT_RELEASE_ROOT")} of
        {false, _} -> provide(Provider, new);
        {_, false} -> ok; % the slave has its own
        {_, Root} -> provide(Provider, Root) % init:restart/0
    end.

provide(restart, _) ->
    say("this release restarts after its runtime.exs, which takes a disk; build it with reboot_system_after_config: false");
provide(Provider, new) ->
    Root = os:getenv("TMPDIR", "/tmp") ++ "/eboot-" ++ os:getpid() ++ "-" ++ integer_to_list(boot_number(), 36),
    case prim_file:make_dir(Root) of
        ok -> provide(Provider, Root);
        {error, Reason} -> not_provided(Root, Reason)
    end;
provide(Provider, Root) ->
    try
        {From, To} = directories(Provider, root(), Root),
        provide_file(From ++ "/sys.config", To ++ "/sys.config"),
        provide_file(From ++ "/runtime.exs", To ++ "/runtime.exs"),
        _ = [true = os:putenv(Name, Value) || {Name, Value} <- [{"EBOOT_RELEASE_ROOT", Root}, {"RELEASE_ROOT", Root}, {"RELEASE_SYS_CONFIG", To ++ "/sys"}]],
        ok
    catch
        error:{badmatch, {error, Reason}} -> not_provided(Root, Reason)
    end.

not_provided(Root, Reason) ->
    say("the runtime.exs of this release needs files in " ++ Root ++ " (" ++ atom_to_list(Reason) ++ "); set TMPDIR to a directory that can be written").

directories([Part | Parts], From, To) ->
    Name = "/" ++ binary_to_list(Part),
    case prim_file:make_dir(To ++ Name) of
        {error, eexist} -> ok;
        Made -> ok = Made
    end,
    directories(Parts, From ++ Name, To ++ Name);
directories([], From, To) ->
    {From, To}.

provide_file(From, To) ->
    case erl_prim_loader:get_file(From) of
        {ok, Content, _} -> ok = prim_file:write_file(To, Content);
        error -> ok
    end.

say(Text) -> erlang:display_string("eboot: " ++ Text ++ "\n").

init(Parent, Args) ->
    process_flag(trap_exit, true),
    Old = whereis(erl_prim_loader),
    Old ! {self(), {get_path, []}},
    Path = receive {Old, {ok, P}} -> P end,
    Conn = adopt(Old),
    unregister(erl_prim_loader),
    register(erl_prim_loader, self()),
    Now = now_ms(),
    S0 = #{parent => Parent, stock => Old, args => Args, hosts => hosts(), root => root(), mode => mode(), path => [],
           variables => variables(get_value(vars, Args, [])), % [{Name, Directory}]
           boot => boot_number(), began => Now,
           used => Now,       % when a request came, or the session was asked for
           suspects => [],    % [{IP, Until}]
           tries => 0,        % in vain since a server did its work
           quiet => Now + ?COMPLAIN, % until then the console is told nothing
           reason => no_answer,      % why it is in vain
           control => false,  % whether the connection is kept
           restart => no,     % no | asked | begun
           conn => Conn,
           cache => #{roots => [], cwd => none, tree => none, files => #{}, expect => #{}, planned => false},
           report => #{phases => [], due => infinity, ended => false, switches => 0, local => 0}},
    S1 = case Conn of
             #{socket := none} -> S0;
             _ -> open(S0)
         end,
    Parent ! {self(), ok},
    loop(S1#{path := [place(D, S1) || D <- Path]}).

no_connection() ->
    #{socket => none,  % port | none
      peer => none,    % {IP, Port} of the server in use, or of the latest
      session => none, % none | opening | open | plain
      buffer => <<>>,  % what has arrived of the next frames
      asked => 0,      % when the session was asked for
      heard => 0,      % when the latest byte came
      pack => false}.  % whether the link was found slow

%% adopt takes the socket that the stock loader has connected. What is
%% not documented, and was seen to work with OTP 23 to 29: the loader forgets a port
%% when it is told that the port has ended (inet_exit_port/3), so that it does not close it
%% after a minute.
adopt(Old) ->
    {links, Links} = process_info(Old, links),
    case [P || P <- Links, is_port(P), erlang:port_info(P, name) =:= {name, "tcp_inet"}] of
        [Socket | _] ->
            try
                true = erlang:port_connect(Socket, self()),
                Old ! {'EXIT', Socket, adopted},
                ok = prim_inet:setopts(Socket, tcp_options()),
                {ok, Peer} = prim_inet:peername(Socket),
                (no_connection())#{socket := Socket, peer := Peer, heard := now_ms()}
            catch
                error:_ -> kill(Socket), no_connection()
            end;
        [] ->
            no_connection()
    end.

%% The main loop.

loop(#{restart := asked, report := #{ended := Ended}} = S) when Ended =/= false ->
    loop(restart(S));
loop(#{conn := #{socket := Socket}, parent := Parent} = S) ->
    receive
        {Pid, Request} when is_pid(Pid) ->
            loop(answer(Pid, Request, S#{used := now_ms()}));
        {?MODULE, phase, Phase, At} ->
            loop(careful(fun() -> phase_reached(Phase, At, S) end, S));
        {tcp, Socket, Data} ->
            loop(careful(fun() -> consume(feed(Data, S)) end, S));
        {tcp_passive, Socket} ->
            loop(read_on(Socket, S));
        {tcp_closed, Socket} ->
            loop(closed(S#{used := now_ms()}));
        {tcp_error, Socket, _} ->
            loop(closed(S#{used := now_ms()}));
        {'EXIT', Socket, _} ->
            loop(closed(S#{used := now_ms()}));
        {'EXIT', Parent, Why} ->
            ended(Why, S);
        _ ->
            loop(S)
    after wait(S) ->
            loop(careful(fun() -> timeout(now_ms(), S) end, S))
    end.

%% ended stops with the node. So will the stock loader, which would crash over the connection
%% that it has no more; init takes note of it in its turn.
ended(Why, #{stock := Stock}) ->
    exit(Stock, kill),
    exit(Why).

%% careful does what nobody waits for. Whatever goes wrong, the node lives.
careful(Do, S) ->
    try Do() catch error:_ -> abandon(S) end.

%% abandon goes back to a state that was good before, without a connection: what was
%% opened since is not known any more.
abandon(S) ->
    {links, Links} = process_info(self(), links),
    _ = [kill(Port) || Port <- Links, is_port(Port)],
    closed(S).

kill(Port) ->
    unlink(Port),
    exit(Port, kill).

%% answer serves one request. Whatever goes wrong with it, its caller gets an answer.
answer(Pid, Request, S) ->
    {Reply, S1} = try
                      handle(Request, S)
                  catch
                      error:Reason -> {{error, Reason}, abandon(S)}
                  end,
    case Reply of
        ignore -> S1;
        _ -> Pid ! {self(), Reply}, S1
    end.

handle({set_path, Paths}, S) -> {ok, S#{path := [place(D, S) || D <- Paths, is_list(D) orelse is_atom(D)]}};
handle({get_path, _}, #{path := Path} = S) -> {{ok, Path}, S};
handle({get_file, File}, #{path := Path} = S) -> get_file(File, Path, S);
handle({get_modules, {Modules, Fun}}, #{path := Path} = S) -> get_modules(Modules, Fun, Path, S);
handle({get_modules, {Modules, Fun, Path}}, S) -> get_modules(Modules, Fun, Path, S);
handle({read_file, File}, S) -> get(File, S);
handle({list_dir, Dir}, S) -> list_dir(Dir, S);
handle({read_file_info, File}, S) -> file_info(read_file_info, File, S);
handle({read_link_info, File}, S) -> file_info(read_link_info, File, S);
handle({get_cwd, []}, S) -> get_cwd(ready(S));
handle({get_cwd, [Drive]}, S) -> call({get_cwd, Drive}, S);
%% These two kill the stock loader in inet mode.
handle({set_primary_archive, _, _, _, _}, S) -> {{error, enotsup}, S};
handle(purge_archive_cache, S) -> {ok, S};
handle({?MODULE, provider}, #{args := Args} = S) -> {get_value(provider, Args, none), S};
handle(_, S) -> {ignore, S}.

%% Files.

get_file(File, Path, S) ->
    case Path =/= [] andalso erl_prim_loader:is_basename(File) of
        true -> search(File, Path, {error, enoent}, S);
        false -> named(File, get(File, S))
    end.

search(File, [Dir | Path], _, S) ->
    Name = Dir ++ "/" ++ File,
    case get(Name, S) of
        {{error, _} = Error, S1} -> search(File, Path, Error, S1);
        Found -> named(Name, Found)
    end;
search(_, [], Error, S) ->
    {Error, S}.

named(Name, {{ok, Content}, S}) -> {{ok, Content, Name}, S};
named(_, Failed) -> Failed.

get(Name0, S0) ->
    {Where, Name, S} = lookup(Name0, S0),
    case Where of
        {_, {d, _, _}} -> {{error, eisdir}, local(S)};
        {error, Reason, _} -> {{error, Reason}, local(S)};
        {wire, Path} -> content(Path, Name, S);
        {Path, _} -> content(Path, Name, S);
        wire -> call({get, Name}, S)
    end.

%% content returns a file: what was sent ahead, or what the server says.
content(Path, Name, #{cache := #{files := Files, expect := Expect} = C} = S) ->
    case Files of
        #{Path := Content} ->
            {{ok, unpack(Content)}, local(S#{cache := C#{files := used(Path, Files)}})};
        _ when is_map_key(Path, Expect) ->
            case step(S) of
                {lost, S1} -> content(Path, Name, online(S1));
                {_, S1} -> content(Path, Name, S1)
            end;
        _ ->
            call({get, Name}, S)
    end.

unpack({packed, Term}) -> binary_to_term(Term);
unpack(Content) -> Content.

%% A module is loaded once, other files may be read again.
used(Path, Files) ->
    case byte_size(Path) of
        N when N > 5, binary_part(Path, N - 5, 5) =:= <<".beam">> -> maps:remove(Path, Files);
        _ -> Files
    end.

list_dir(Name0, S0) ->
    {Where, Name, S} = lookup(Name0, S0),
    case Where of
        {error, _, true} -> {{error, enotdir}, local(S)}; % as erl_prim_loader says of archives
        {error, Reason, false} -> {{error, Reason}, local(S)};
        {_, {d, _, Entries}} -> {{ok, [binary_to_list(N) || N <- sort(maps:keys(Entries))]}, local(S)};
        {_, {_, _, _}} -> {{error, enotdir}, local(S)};
        _ -> call({list_dir, Name}, S)
    end.

file_info(Request, Name0, S0) ->
    {Where, Name, S} = lookup(Name0, S0),
    case Where of
        {error, Reason, _} -> {{error, Reason}, local(S)};
        {_, {_, _, _} = Entry} -> {{ok, info(Entry)}, local(S)};
        _ -> call({Request, Name}, S)
    end.

get_cwd(#{cache := #{tree := Tree, cwd := Cwd}} = S) when Tree =/= none, Cwd =/= none -> {{ok, Cwd}, local(S)};
get_cwd(S) -> call(get_cwd, S).

%% info is the record file_info of kernel's file.hrl, with what a server would say.
info({d, Time, _}) -> info(4096, directory, Time, 8#040755);
info({x, Size, Time}) -> info(Size, regular, Time, 8#100755);
info({f, Size, Time}) -> info(Size, regular, Time, 8#100644).

info(Size, Type, Time, Mode) ->
    At = erlang:posixtime_to_universaltime(Time),
    {file_info, Size, Type, read, At, At, At, Mode, 1, 0, 0, 0, 0, 0}.

%% get_modules asks for what is missing of a group of modules at once. Most of the time of a boot
%% goes into what the caller's fun does, the check of the code and the making of machine code, so
%% that is done by processes of its own, on all schedulers and while the next files come. A caller that
%% fails is not our failure: what its fun returns or throws is told to it.
get_modules(Modules, Fun, Path, S) ->
    get_modules(Modules, Fun, Path, S, #{begun => 0, running => #{}, good => [], bad => []}). % running: Monitor => Module

get_modules([], _, _, S, #{running := Running, good := Good, bad := Bad}) when Running =:= #{} ->
    {{ok, {Good, Bad}}, S};
get_modules([], Fun, Path, S, Work) ->
    get_modules([], Fun, Path, S, end_one(Work, S));
get_modules(Modules, Fun, Path, S0, Work0) ->
    {Group, Rest} = split(?GROUP, Modules, []),
    S1 = ready(S0),
    S2 = fetch(missing(Group, Path, S1), S1),
    {S, Work} = get_group(Group, Fun, Path, S2, Work0),
    get_modules(Rest, Fun, Path, S, Work).

get_group([Module | Modules], Fun, Path, S, Work) ->
    case get_file(beam(Module), Path, S) of
        {{ok, Beam, Name}, S1} ->
            get_group(Modules, Fun, Path, S1, begin_one(Module, fun() -> process(Module, Name, Beam, Fun) end, Work, S1));
        {{error, _} = Error, S1} ->
            get_group(Modules, Fun, Path, S1, note(Module, Error, Work))
    end;
get_group([], _, _, S, Work) ->
    {S, Work}.

%% begin_one begins what is to be done for a module, when there is room for it.
begin_one(Module, Do, #{begun := N, running := Running} = Work, _) when map_size(Running) < ?AT_ONCE ->
    N rem 16 =:= 15 andalso erlang:garbage_collect(), % of files that are done with
    {_, Monitor} = spawn_at(N, fun() -> exit({?MODULE, Do()}) end),
    Work#{begun := N + 1, running := Running#{Monitor => Module}};
begin_one(Module, Do, Work, S) ->
    begin_one(Module, Do, end_one(Work, S), S).

%% spawn_at begins a process on the Nth scheduler: in a node that has just begun the others sleep on for
%% longer than a boot takes. The option is not documented; OTP 23 to 29 know it.
spawn_at(N, Do) ->
    try
        spawn_opt(Do, [monitor, {scheduler, N rem erlang:system_info(schedulers_online) + 1}])
    catch
        error:badarg -> spawn_monitor(Do)
    end.

%% end_one waits for the end of any.
end_one(#{running := Running} = Work, #{parent := Parent}) ->
    receive
        {'DOWN', Monitor, process, _, Why} when is_map_key(Monitor, Running) ->
            #{Monitor := Module} = Running,
            Result = case Why of {?MODULE, R} -> R; _ -> {error, {crash, Why}} end,
            note(Module, Result, Work#{running := maps:remove(Monitor, Running)});
        {'EXIT', Parent, Why} ->
            exit(Why)
    end.

note(Module, {ok, Result}, #{good := Good} = Work) -> Work#{good := [{Module, Result} | Good]};
note(Module, {error, Reason}, #{bad := Bad} = Work) -> Work#{bad := [{Module, Reason} | Bad]}.

process(Module, Name, Beam, Fun) ->
    try Fun(Module, Name, Beam) of
        {ok, _} = Good -> Good;
        {error, _} = Bad -> Bad;
        Other -> {error, {bad_return, Other}}
    catch
        _:Reason -> {error, {crash, Reason}}
    end.

beam(Module) -> atom_to_list(Module) ++ init:objfile_extension().

%% missing returns the files of modules that are neither here nor on their way.
missing(Modules, Path, S) ->
    [F || M <- Modules, F <- first(beam(M), Path, S)].

first(File, [Dir | Path], #{cache := #{files := Files, expect := Expect}} = S) ->
    case resolve(Dir ++ "/" ++ File, S) of
        {F, {Kind, _, _}} when Kind =/= d, not is_map_key(F, Files), not is_map_key(F, Expect) -> [F];
        {error, _, _} -> first(File, Path, S);
        _ -> []
    end;
first(_, [], _) ->
    [].

fetch([], S) ->
    S;
fetch(Paths, S0) ->
    case settled(online(S0)) of
        #{conn := #{session := open}, cache := #{expect := Expect} = C} = S ->
            ask(Paths, S#{cache := C#{expect := expecting(Paths, Expect)}});
        S ->
            S
    end.

ask([], S) ->
    S;
ask(Paths, S) ->
    {Some, More} = frameful(?FETCH, ?FRAME, Paths, []),
    ask(More, send({eboot_fetch, Some}, S)).

frameful(N, Room, [Path | Paths], Taken) when N > 0, byte_size(Path) < Room ->
    frameful(N - 1, Room - byte_size(Path) - 5, Paths, [Path | Taken]);
frameful(_, _, Paths, Taken) ->
    {reverse(Taken), Paths}.

expecting([Path | Paths], Expect) -> expecting(Paths, Expect#{Path => true});
expecting([], Expect) -> Expect.

%% Names.

%% lookup finds a name in the tree: {Path, Entry}, {error, Reason, Archive} where Archive
%% says that the name leads through what would be an archive, {wire, Path} when only a server
%% can tell, or wire when it is not even a path that a plan could have. It returns the name with boot
%% variables in their place.
lookup(Name0, S0) ->
    S = ready(S0),
    Name = place(Name0, S),
    {resolve(Name, S), Name, S}.

resolve(_, #{cache := #{tree := none}}) ->
    wire;
resolve(Name, #{cache := #{tree := Tree, roots := Roots}}) ->
    case relative(parts(Name, [], []), Roots) of
        wire -> wire;
        none -> {error, enoent, false};
        Parts ->
            case walk(Parts, Tree) of
                wire ->
                    case demands_directory(Name) of
                        true -> wire;
                        false -> {wire, join(Parts)}
                    end;
                {error, Reason} -> {error, Reason, archived(Parts)};
                {d, _, _} = Directory -> {join(Parts), Directory};
                File ->
                    case demands_directory(Name) of
                        true -> wire;
                        false -> {join(Parts), File}
                    end
            end
    end.

demands_directory(Name) ->
    case reverse(Name) of
        [C | _] when C =:= $/; C =:= $. -> true; % a file may end in a dot; the server knows
        _ -> false
    end.

%% parts splits a name at its slashes: [absolute | relative, binary ...]. What is rare is
%% left to the server: the empty name, and other than ASCII.
parts([$/ | Name], [], []) -> parts(Name, [], [absolute]);
parts([_ | _] = Name, [], []) -> parts(Name, [], [relative]);
parts([$/ | Name], Word, Parts) -> parts(Name, [], part(Word, Parts));
parts([C | Name], Word, Parts) when is_integer(C), C > 0, C < 128 -> parts(Name, [C | Word], Parts);
parts([], Word, [_ | _] = Parts) -> reverse(part(Word, Parts));
parts(_, _, _) -> wire.

part(Word, Parts) when Word =:= []; Word =:= "." -> Parts;
part("..", [absolute]) -> [absolute];
part("..", [Part | Parts]) when is_binary(Part), Part =/= <<"..">> -> Parts;
part(Word, Parts) -> [list_to_binary(reverse(Word)) | Parts].

%% relative is where a server looks: below the longest of its roots.
relative([absolute | Parts], Roots) -> below(Parts, Roots);
relative([relative, <<"..">> | _], _) -> wire;
relative([relative | Parts], _) -> Parts;
relative(wire, _) -> wire.

below(Parts, [Root | Roots]) ->
    case strip(Root, Parts) of
        none -> below(Parts, Roots);
        Rest -> Rest
    end;
below(_, []) ->
    none.

strip([X | Prefix], [X | List]) -> strip(Prefix, List);
strip([], List) -> List;
strip(_, _) -> none.

walk([Part | Parts], {d, _, Entries}) ->
    case Entries of
        #{Part := Entry} -> walk(Parts, Entry);
        _ when byte_size(Part) > 255 -> wire;
        _ -> {error, enoent}
    end;
walk([], Entry) -> Entry;
walk(_, wire) -> wire;
walk(_, _) -> {error, enotdir}.

archived([Part | Parts]) ->
    case byte_size(Part) of
        N when N > 3, binary_part(Part, N - 3, 3) =:= <<".ez">> -> true;
        _ -> archived(Parts)
    end;
archived([]) ->
    false.

join([]) -> <<>>;
join([Part | Parts]) -> join(Parts, Part).

join([Part | Parts], Path) -> join(Parts, <<Path/binary, $/, Part/binary>>);
join([], Path) -> Path.

%% place puts the directory of a boot variable where our boot script has its name, right
%% below the root: "/opt/erlang/$RELEASE_LIB/kernel-8.5.3/ebin".
place(Name, S) when is_atom(Name) -> place(atom_to_list(Name), S);
place(Name, #{root := Root, variables := Variables}) ->
    case strip(Root ++ "/$", Name) of
        none -> Name;
        Rest -> place(Rest, Variables, Name)
    end.

place(Rest, [{Variable, Directory} | Variables], Name) ->
    case strip(Variable, Rest) of
        [$/ | _] = Below -> Directory ++ Below;
        [] -> Directory;
        _ -> place(Rest, Variables, Name)
    end;
place(_, [], Name) ->
    Name.

%% variables are the directories of boot variables: the slave's own, else the bundle's.
variables([{Variable, Directory} | More]) ->
    Name = binary_to_list(Variable),
    Default = root() ++ "/" ++ binary_to_list(Directory),
    [{Name, given(Name, Default)} | variables(More)];
variables([]) ->
    [].

given(Name, Default) ->
    case init:get_argument(boot_var) of
        {ok, Given} -> given(Name, Default, reverse(Given)); % init takes the last
        error -> Default
    end.

given(Name, _, [[Name, Directory] | _]) -> Directory;
given(Name, Default, [_ | Given]) -> given(Name, Default, Given);
given(_, Default, []) -> Default.

%% The session.

%% ready returns when the tree is here, or will not be: the server speaks plain EBOOT.
ready(#{conn := #{session := plain}} = S) -> S;
ready(#{cache := #{tree := Tree}} = S) when Tree =/= none -> S;
ready(#{conn := #{session := open}} = S) -> ready(open(S));
ready(S) ->
    case online(S) of
        #{conn := #{session := opening}} = S1 ->
            {_, S2} = step(S1),
            ready(S2);
        S1 ->
            ready(S1)
    end.

%% online returns with a connection.
online(#{conn := #{socket := none}} = S) -> connect(S);
online(S) -> S.

%% call asks the server, as the stock loader would, until some server has answered.
call(Request, S0) ->
    S = settled(online(S0)),
    reply(Request, send(Request, S)).

%% settled returns when it is known what the server speaks.
settled(#{conn := #{session := opening}} = S) ->
    {_, S1} = step(S),
    settled(online(S1));
settled(S) ->
    S.

reply(Request, S) ->
    case step(S) of
        {lost, S1} -> call(Request, S1);
        {more, S1} -> reply(Request, S1);
        {{_, {ok, _} = Good}, S1} -> {Good, S1};
        {{_, {error, Reason}}, S1} -> {{error, Reason}, S1};
        {{error, Reason}, S1} -> {{error, Reason}, S1}
    end.

%% open asks for a session. What is wanted comes with the answer. (Nothing may be asked of init after
%% the start: it may be waiting for us.)
open(#{args := Args, conn := #{pack := Pack} = Conn, cache := #{tree := Tree, planned := Planned}, report := #{ended := Ended},
       root := Root, mode := Mode, began := Began, boot := Boot} = S) ->
    Now = now_ms(),
    Want = [tree || Tree =:= none] ++ [plan || not Planned, Ended =:= false],
    Options = [{bundle, get_value(bundle, Args, <<>>)}, {script, get_value(script, Args, <<>>)}, {mode, Mode},
               {root, text(Root)}, {age, Now - Began}, {boot, Boot},
               {want, Want}, {pack, Pack}, {can, [restart]}],
    send({eboot_open, 1, get_value(digest, Args, <<>>), Options},
         S#{used := Now, conn := Conn#{session := opening, asked := Now}}).

%% step takes the next frame: {lost, S} when there is no connection any more, {more, S} when
%% it was one of ours, {Reply, S}.
step(#{conn := #{socket := none}} = S) ->
    {lost, S};
step(S0) ->
    case frame(S0) of
        {lost, S} -> {lost, S};
        {Frame, S} -> take(binary_to_term(Frame), S)
    end.

take({eboot_file, Path, Content}, S) ->
    #{cache := #{expect := Expect, files := Files} = C} = S1 = useful(S),
    case {Expect, Content} of
        {#{Path := _}, {error, _}} -> {more, S1#{cache := C#{expect := maps:remove(Path, Expect)}}};
        {#{Path := _}, _} -> {more, S1#{cache := C#{expect := maps:remove(Path, Expect), files := Files#{Path => Content}}}};
        _ -> {more, S1} % dropped meanwhile
    end;
take({eboot_done, _}, S) -> {more, useful(S)};
take({eboot_open, {ok, Info}}, S) -> {more, opened(Info, S)};
take({eboot_open, {error, Reason}}, S) -> {lost, complain(lost(S#{reason := Reason}))};
take({eboot_restart, Boot}, #{boot := Boot, restart := no} = S) -> {more, S#{restart := asked}};
take({eboot_restart, _}, S) -> {more, S}; % of a boot before this one
take({error, unknown_command}, #{conn := #{session := opening} = Conn, cache := C} = S) ->
    {more, useful(S#{conn := Conn#{session := plain}, cache := C#{tree := none, expect := #{}}})};
take(Reply, S) -> {Reply, useful(S)}.

opened(Info, #{cache := #{tree := Tree, planned := Planned, expect := Expect} = Cache, conn := #{asked := Asked} = Conn,
               report := #{phases := Phases} = Report} = S) ->
    Plan = get_value(plan, Info, none),
    Cwd = binary_to_list(get_value(cwd, Info, <<>>)),
    C = Cache#{roots := roots(get_value(roots, Info, [])),
               cwd := case parts(Cwd, [], []) of wire -> none; _ -> Cwd end,
               tree := case get_value(tree, Info, none) of none -> Tree; Packed -> binary_to_term(Packed) end,
               expect := case Plan of none -> Expect; _ -> expecting(Plan, Expect) end,
               planned := Planned orelse Plan =/= none},
    Due = case Phases of [] -> infinity; _ -> now_ms() + ?LAZY_REPORT end,
    S1 = S#{cache := C, control := get_value(control, Info, off) =:= on,
            conn := Conn#{session := open, pack := now_ms() - Asked > ?SLOW}, report := Report#{due := Due}},
    case maps:keys(Expect) of
        [] -> useful(S1);
        Promised -> ask(Promised, S1) % what a server that is gone had still to send
    end.

%% roots are split into parts, the longest first, as parts/3 does it to names.
roots(Roots) ->
    [Parts || {_, Parts} <- reverse(sort([{length(P), P} || R <- Roots, [absolute | P] <- [parts(binary_to_list(R) ++ "/", [], [])]]))].

%% send ignores failures: they are seen when the answer is waited for.
send(Request, #{conn := #{socket := Socket}} = S) when is_port(Socket) ->
    Data = term_to_binary(Request),
    _ = prim_inet:send(Socket, [<<(byte_size(Data)):32>>, Data]),
    S;
send(_, S) ->
    S.

%% frame returns the next frame that is not empty, waiting for it.
frame(#{conn := #{buffer := <<0:32, Rest/binary>>} = Conn} = S) ->
    frame(S#{conn := Conn#{buffer := Rest}});
frame(#{conn := #{buffer := <<Size:32, Frame:Size/binary, Rest/binary>>} = Conn} = S) ->
    {Frame, S#{conn := Conn#{buffer := Rest}}};
frame(#{conn := #{socket := Socket, session := Session}, parent := Parent, tries := Tries} = S) ->
    Patience = case Session of
                   plain -> ?PLAIN_SILENCE;
                   opening -> ?SILENCE * min(4, max(1, Tries - 1)); % it may not be one of ours, and slow
                   open -> ?SILENCE
               end,
    receive
        {tcp, Socket, Data} -> frame(feed(Data, S));
        {tcp_passive, Socket} -> frame(read_on(Socket, S));
        {tcp_closed, Socket} -> {lost, lost(S)};
        {tcp_error, Socket, _} -> {lost, lost(S)};
        {'EXIT', Socket, _} -> {lost, lost(S)};
        {'EXIT', Parent, Why} -> exit(Why)
    after Patience -> {lost, lost(S)}
    end.

%% read_on has the socket read again, when what it had read is taken: files would pile up here while
%% modules are processed.
read_on(Socket, S) ->
    _ = prim_inet:setopts(Socket, [{active, ?CHUNKS}]),
    S.

feed(Data, #{conn := #{buffer := Buffer} = Conn} = S) ->
    Together = case Buffer of <<>> -> Data; _ -> <<Buffer/binary, Data/binary>> end,
    S#{conn := Conn#{buffer := Together, heard := now_ms()}}.

%% consume takes the whole frames that came while nobody waited.
consume(#{conn := #{buffer := <<Size:32, Rest/binary>>} = Conn} = S) when byte_size(Rest) >= Size ->
    case Size of
        0 -> consume(S#{conn := Conn#{buffer := Rest}});
        _ ->
            {_, S1} = step(S),
            consume(S1)
    end;
consume(S) ->
    S.

%% lost gives a server up that failed while it was needed; closed, a connection that was not. What no
%% server could send ahead is forgotten after a while, and asked for when it is needed.
lost(#{conn := #{peer := Peer}, report := #{switches := Switches} = Report, suspects := Suspects, tries := Tries, cache := C} = S) ->
    Host = case Peer of {IP, _} -> IP; none -> none end,
    Cache = case Tries > 6 of true -> C#{expect := #{}}; false -> C end,
    (closed(S))#{suspects := [{Host, now_ms() + ?SUSPECT} | live(Suspects)], tries := Tries + 1, cache := Cache,
                 report := Report#{switches := Switches + 1}}.

closed(#{conn := #{socket := Socket, peer := Peer, pack := Pack}} = S) ->
    case is_port(Socket) of
        true -> kill(Socket);
        false -> ok
    end,
    S#{conn := (no_connection())#{peer := Peer, pack := Pack}}.

live(Suspects) ->
    Now = now_ms(),
    [Suspect || {_, Until} = Suspect <- Suspects, Until > Now].

%% Finding a server.

%% connect returns connected, with the session asked for. In vain, it waits longer each time, up
%% to half a second; a little even the first time, so that not all slaves of a server that died turn
%% to the next one at once.
connect(#{tries := Tries} = S) ->
    case Tries of
        0 -> ok;
        _ -> pause(jitter(min(500, 20 bsl min(Tries, 6))), S)
    end,
    case attempt(S) of
        #{conn := #{socket := none}} = S1 -> connect(complain(S1));
        S1 -> S1
    end.

%% attempt tries all servers once. A server that was left because it was not used is tried
%% alone; else everybody is asked, and the best is tried first.
attempt(#{conn := #{peer := {IP, Port}}, suspects := Suspects, tries := 0} = S) ->
    case lists:keymember(IP, 1, live(Suspects)) of
        true -> attempt(S#{tries := 1});
        false -> reach([{IP, Port}], S#{tries := 1})
    end;
attempt(#{tries := Tries} = S) ->
    reach(discover(S), S#{tries := Tries + 1}).

reach([{IP, Port} | Servers], #{conn := Conn, tries := Tries, suspects := Suspects} = S) ->
    Patience = case Servers of [] when Tries > 3 -> 10 * ?CONNECT; _ -> ?CONNECT end,
    case tcp(IP, Port, Patience) of
        {ok, Socket} -> open(S#{conn := Conn#{socket := Socket, peer := {IP, Port}, session := none, buffer := <<>>, heard := now_ms()}});
        {error, _} -> reach(Servers, S#{suspects := [{IP, now_ms() + ?SUSPECT} | live(Suspects)]})
    end;
reach([], S) ->
    S.

%% complain tells the console, now and then, why nothing goes on.
complain(#{quiet := Quiet, reason := Reason, hosts := Hosts} = S) ->
    case now_ms() of
        Now when Now >= Quiet ->
            erlang:display({?MODULE, 'no server has our bundle', Reason, Hosts}),
            S#{quiet := Now + ?COMPLAIN};
        _ -> S
    end.

%% useful notes that a server does its work.
useful(S) -> S#{tries := 0, quiet := now_ms() + ?COMPLAIN, reason := no_answer}.

pause(Time, #{parent := Parent}) ->
    receive {'EXIT', Parent, Why} -> exit(Why) after Time -> ok end.

%% discover returns the servers that answered, the best first: [{IP, Port}].
discover(#{hosts := Hosts, suspects := Suspects, parent := Parent}) ->
    case prim_inet:open(udp, inet, dgram) of
        {ok, Socket} ->
            ok = prim_inet:setopts(Socket, [{mode, list}, {active, true}, {deliver, term}, {broadcast, true}]),
            {ok, _} = prim_inet:bind(Socket, {0, 0, 0, 0}, 0),
            Query = ["EBOOTQ", erlang:system_info(version)],
            _ = [prim_inet:sendto(Socket, Host, ?PORT, Query) || Host <- Hosts],
            Bad = [Host || {Host, _} <- live(Suspects)],
            Found = collect(Socket, Parent, now_ms(), [H || H <- Hosts, not lists:member(H, Bad)], Bad, []),
            kill(Socket),
            [{IP, Port} || {_, _, IP, Port} <- sort(Found)];
        {error, _} ->
            []
    end.

%% collect waits for answers until all that are trusted have answered, or one of them says
%% that it is the best, or the window is over. A broadcast address never answers.
collect(Socket, Parent, Began, Trusted, Bad, Found) ->
    Left = case {Found, [best || {trusted, 0, _, _} <- Found]} of
               {[], _} -> Began + ?ROUND - now_ms();
               {_, [_ | _]} -> 0;
               _ when Trusted =:= [] -> 0;
               _ -> Began + ?WINDOW - now_ms()
           end,
    receive
        {udp, Socket, IP, _, [$E, $B, $O, $O, $T, $R, Priority, High, Low | _]} ->
            Trust = case lists:member(IP, Bad) of true -> untrusted; false -> trusted end,
            collect(Socket, Parent, Began, [H || H <- Trusted, H =/= IP], Bad, [{Trust, Priority, IP, High * 256 + Low} | Found]);
        {udp, Socket, _, _, _} ->
            collect(Socket, Parent, Began, Trusted, Bad, Found);
        {'EXIT', Parent, Why} ->
            exit(Why)
    after max(0, Left) ->
            Found
    end.

tcp(IP, Port, Timeout) ->
    case prim_inet:open(tcp, inet, stream) of
        {ok, Socket} ->
            ok = prim_inet:setopts(Socket, tcp_options()),
            case prim_inet:connect(Socket, IP, Port, Timeout) of
                ok -> {ok, Socket};
                Error -> unlink(Socket), prim_inet:close(Socket), Error
            end;
        Error -> Error
    end.

%% Frames are taken apart here, not by the driver: the bytes of a long one are signs of life.
tcp_options() ->
    [{mode, binary}, {packet, 0}, {active, ?CHUNKS}, {deliver, term}, {nodelay, true}, {keepalive, true}, {buffer, 65536},
     {send_timeout, ?SILENCE}, {send_timeout_close, true}].

%% Reports, and what is done when nothing happens.

phase_reached(Phase, At, #{began := Began, report := #{phases := Phases, due := Later, ended := Ended} = Report} = S) ->
    Due = case Phase of
              started -> 0;
              restarting -> 0;
              _ -> min(Later, At + ?LAZY_REPORT)
          end,
    S1 = S#{used := now_ms(), report := Report#{phases := [{phase, Phase, max(0, At - Began)} | Phases], due := Due,
                                                        ended := case Phase of started -> At; _ -> Ended end}},
    case Due of
        0 -> report(S1);
        _ -> S1
    end.

%% report tells all that is known each time: this server may not be the one of the last time.
%% Nobody waits for it, so it waits for no server: in mid-boot the next session brings it up again,
%% and after the boot it is tried later and later.
report(#{conn := #{socket := none}, report := #{ended := false} = Report} = S) ->
    S#{report := Report#{due := infinity}};
report(S0) ->
    #{conn := #{session := Session}, report := #{ended := Ended, phases := Phases, switches := Switches, local := Local} = Report} = S =
        once(S0),
    Now = now_ms(),
    case Session of
        open ->
            send({eboot_report, [{switches, Switches}, {local, Local} | reverse(Phases)]}, S#{report := Report#{due := infinity}});
        none when Ended =/= false ->
            S#{report := Report#{due := 2 * Now - Ended + 1000 + jitter(4000)}};
        _ ->
            S#{report := Report#{due := infinity}}
    end.

%% once tries one time to have a session, for what nobody waits for.
once(#{conn := #{socket := none}} = S) -> opening(attempt(S));
once(S) -> opening(S).

opening(#{conn := #{session := opening}} = S) ->
    {_, S1} = step(S),
    opening(S1);
opening(S) ->
    S.

local(#{report := #{local := Local} = Report} = S) -> S#{report := Report#{local := Local + 1}}.

%% restart has init begin anew, as a server wants it; the stock loader comes back then. It is
%% not done in the middle of a boot. Init is asked by another process: it may be waiting for us.
restart(S0) ->
    S1 = S0#{restart := begun},
    S = careful(fun() -> phase_reached(restarting, now_ms(), S1) end, S1),
    spawn(init, restart, []),
    S.

%% wait is how long the loop may sleep.
wait(#{report := #{due := Due}} = S) ->
    case min(Due, min(release_at(S), connection_at(S))) of % a number is less than an atom
        infinity -> infinity;
        Time -> max(0, Time - now_ms())
    end.

%% connection_at is when something is to be done about the connection: closed, when it is not
%% used; made, when it is to be there; given up, when a server that says something every 20 s
%% says nothing.
connection_at(#{conn := #{socket := none}, control := true, used := Used, tries := Tries}) -> Used + jitter(1000) * min(Tries + 1, 30);
connection_at(#{conn := #{socket := none}}) -> infinity;
connection_at(#{conn := #{heard := Heard}, control := true}) -> Heard + ?DEAF;
connection_at(#{used := Used}) -> Used + ?IDLE.

%% release_at is when tree and files are to be dropped. What was sent ahead goes even when
%% the node goes on to load code.
release_at(#{report := #{ended := false}}) -> infinity;
release_at(#{cache := #{tree := none, files := Files}}) when Files =:= #{} -> infinity;
release_at(#{cache := #{files := Files}, used := Used}) when Files =:= #{} -> Used + ?RELEASE;
release_at(#{report := #{ended := Ended}, used := Used}) -> min(Used, Ended) + ?RELEASE.

timeout(Now, #{report := #{due := Due}} = S) when Due =< Now ->
    report(S);
timeout(Now, #{cache := C, conn := #{socket := Socket}} = S) ->
    case release_at(S) =< Now of
        true -> released(S#{cache := C#{tree := none, files := #{}, expect := #{}}});
        false when Socket =:= none -> reconnect(Now, S);
        false ->
            case connection_at(S) =< Now of
                true -> closed(S#{used := Now});
                false -> S
            end
    end.

reconnect(Now, #{control := true} = S) -> once(S#{used := Now});
reconnect(_, S) -> S.

released(S) ->
    erlang:garbage_collect(),
    S.

%% What the preloaded modules do not have.

now_ms() -> erlang:monotonic_time(millisecond).

jitter(Limit) -> erlang:phash2({self(), erlang:monotonic_time(), erlang:unique_integer()}, Limit) + 1.

boot_number() ->
    Seed = {erlang:system_time(), erlang:unique_integer(), make_ref()},
    erlang:phash2({Seed, 1}, 1 bsl 24) bsl 24 bor erlang:phash2({Seed, 2}, 1 bsl 24).

%% text is Latin-1, which is all that is needed for a name that the tree knows.
text(String) ->
    try list_to_binary(String) catch error:_ -> <<>> end.

root() ->
    {ok, [[Root]]} = init:get_argument(root),
    Root.

mode() ->
    case init:get_argument(mode) of
        {ok, [["embedded"] | _]} -> embedded;
        _ -> interactive
    end.

hosts() ->
    case init:get_argument(hosts) of
        {ok, [Hosts | _]} -> [Host || Text <- Hosts, Host <- address(Text, 0, [])];
        _ -> []
    end.

address([$. | Text], N, Parts) -> address(Text, 0, [N | Parts]);
address([C | Text], N, Parts) when C >= $0, C =< $9, N < 256 -> address(Text, 10 * N + C - $0, Parts);
address([], D, [C, B, A]) when A < 256, B < 256, C < 256, D < 256 -> [{A, B, C, D}];
address(_, _, _) -> [].

get_value(Key, List, Default) ->
    case lists:keyfind(Key, 1, List) of
        {_, Value} -> Value;
        false -> Default
    end.

split(N, [X | List], Taken) when N > 0 -> split(N - 1, List, [X | Taken]);
split(_, List, Taken) when is_list(List) -> {reverse(Taken), List}.

reverse(List) -> lists:reverse(List, []).

sort([]) -> [];
sort([X]) -> [X];
sort(List) ->
    {Left, Right} = split(length(List) div 2, List, []),
    merge(sort(Left), sort(Right)).

merge([X | Xs], [Y | Ys]) when X =< Y -> [X | merge(Xs, [Y | Ys])];
merge([X | Xs], [Y | Ys]) -> [Y | merge([X | Xs], Ys)];
merge([], Ys) -> Ys;
merge(Xs, []) -> Xs.
