"""Keys that lie around where an image is built."""

# In files where they do not belong, and in places where nobody would look for them.
SECRET = "mlops-secret-" + "5f1d0c7ab2"
PLANTED = (
    *(".env", "key.json", "service-account.json", "id_rsa", "requirements/.env", "dockerfiles/key.pem"),
    *("src/.env", "src/key.json", "src/mlops/.env", "src/mlops/key.json", "src/mlops/serving/page/key.pem"),
    *("configshydra/.env", "configshydra/data/key.json", ".dvc/config.local", ".dvc/tmp/x", ".git/x", "data/x.png"),
    *("models/latest/key.json", "outputs/x", "wandb/x", "keys.txt", "model.onnx.key"),
)
