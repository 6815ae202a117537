import java.nio.file.Path;
import java.util.Map;
import java.util.Set;
import org.elasticsearch.common.logging.LogConfigurator;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.env.Environment;
import org.elasticsearch.plugins.PluginsLoader;

/** A real Elasticsearch node without the launcher of its distribution: HOME with config/ and modules/, as there. */
public class Node {
    public static void main(String[] arguments) throws Exception {
        Path home = Path.of(arguments[0]);
        Settings settings = Settings.builder()
            .loadFromPath(home.resolve("config/elasticsearch.yml"))
            .put("path.home", home.toString())
            .build();
        LogConfigurator.configureWithoutConfig(settings);
        PluginsLoader modules = PluginsLoader.createPluginsLoader(
            PluginsLoader.loadModulesBundles(home.resolve("modules")), Set.of(), Map.of(), false);
        var node = new org.elasticsearch.node.Node(new Environment(settings, home.resolve("config")), modules);
        node.start();
        System.out.println("ready");
        System.in.read(); // the test's end closes it
        node.close();
    }
}
